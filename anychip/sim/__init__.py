"""Simulated time: what an op would take on a chip that is not here, from its facts alone.

Nothing in this package has run on the chip that it speaks of; every number it gives is of kind *simulated*.
`roofline` is the coarse model (launch + the larger of compute and memory time). It knows nothing of caches,
of overlap between kernels, of tile sizes or of the network, and its launch and efficiency figures are often
guesses: `sensitivity` says how much a result leans on each of them.
"""
