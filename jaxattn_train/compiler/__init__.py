"""What the compilers of accelerators say of a program, on a machine without an accelerator."""
