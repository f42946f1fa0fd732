"""What models cost and do: the benchmark, and the paper's three analyses."""
