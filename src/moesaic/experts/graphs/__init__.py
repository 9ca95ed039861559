"""Graphs of neurons and of experts: co-activation, its sampled sketch, cuts, balance of digraphs, partition and placement."""
