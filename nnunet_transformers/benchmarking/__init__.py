"""Benchmark time and memory of the networks against nnU-Net's CNNs and other networks, and against a roofline."""
