"""A model small enough to train in a test, ways to run the command line, and a network without one."""

import http.server
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading

import pytest
import requests

from jaxattn_train.data.batches import BatchStream

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = "the quick brown fox jumps over the lazy dog. " * 60
TINY = shlex.split(
    "--attention softmax --num-layers 1 --num-heads 2 --features 16 --context-length 16 --batch-size 16 "
    "--steps 8 --warmup 2 --lr 1e-2 --eval-every 4 --eval-windows 20 --log-every 2 --prefix-windows 0 "
    "--sample-tokens 0"
)


EVERYTHING = shlex.split(
    "--attention softmax+gate=running --positions morlet:learned --qk-norm 0.5 --num-layers 2 --seeds 2 "
    "--mesh fsdp=2 --dropout 0.1 --accumulate 2 --prefix-windows 3 --sample-tokens 20"
)


@pytest.fixture(scope="session")
def tiny():
    """The flags of a tiny run; later flags win."""
    return TINY


@pytest.fixture(scope="module")
def charlm_run(tmp_path_factory):
    """Folder and words of a run with two layers and seeds, gate, Morlet positions, dropout, fsdp, report, sample."""
    from jaxattn_train.cli.commands import main

    folder = tmp_path_factory.mktemp("charlm")
    text = folder / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    words = ["charlm", *TINY, *EVERYTHING, "--text-file", str(text), "--out", str(folder / "run")]
    assert main(words) == 0
    return folder / "run", words


@pytest.fixture
def cli(capsys):
    """Runs `jaxattn-train ...` in this process: (exit code, stdout, stderr)."""
    from jaxattn_train.cli.commands import main

    def run(*words):
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:  # the flag parser's way to leave
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def _environment(devices):
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    flags += f" --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@pytest.fixture(scope="session")
def start():
    """Starts `jaxattn-train ...` as a process of its own with so many devices; it is killed at the end."""
    processes = []

    def run(*words, devices=1, **environment):
        process = subprocess.Popen(
            [sys.executable, "-m", "train", *map(str, words)],
            cwd=ROOT,
            env=_environment(devices) | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    # Shells let what runs in their background ignore Ctrl-C, and all that it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield run
    signal.signal(signal.SIGINT, before)
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def stop_before(monkeypatch):
    """stop_before(n): this process gets SIGTERM as it asks for the n-th batch of a stream, once."""

    def arrange(number, kind=BatchStream):
        asked, following = [], kind.__next__

        def interrupt(stream):
            asked.append(stream)
            if len(asked) == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return following(stream)

        monkeypatch.setattr(kind, "__next__", interrupt)

    return arrange


@pytest.fixture
def text_file(tmp_path):
    """A text with a pattern, long enough for tiny windows."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, no data folder, and an empty cache, which it returns."""

    def refuse(*_, **__):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr("requests.get", refuse)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache")
    monkeypatch.delenv("JAXATTN_DATA", raising=False)
    return tmp_path / "cache"


class _Server(http.server.ThreadingHTTPServer):
    content, most, resumes = b"", 1 << 30, True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked = []
        self.url = f"http://127.0.0.1:{self.server_port}/file"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if self.server.resumes else 0
        self.server.asked.append(start)
        rest = self.server.content[start:]
        self.send_response((206 if rest else 416) if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.most])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(offline, monkeypatch):
    """A local server of one file: its `content`, of which it sends `most` bytes before the connection breaks."""
    get = requests.api.get
    monkeypatch.setattr("requests.get", get)
    with _Server() as one:
        threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True).start()
        yield one
        one.shutdown()
