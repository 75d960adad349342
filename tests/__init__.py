"""Tests of Potstill; each file opens with what it compares with what."""
