"""Time and memory of the networks beside nnU-Net's CNNs and others: what they take, what they could, and the gap."""
