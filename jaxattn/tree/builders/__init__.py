"""Outlines of trees: from nested lists, lengths, character spans and image grids, to text and plots."""
