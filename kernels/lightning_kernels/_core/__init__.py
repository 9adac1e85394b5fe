"""What the functions of this package share. Every practice's package may import it.

- ``triton``: Triton, or a stand-in where it is not installed.
- ``dispatch``: whether Triton, its interpreter or ATen computes a call: the one decision.
- ``launch``: launches of kernels, and the arithmetic of grids.
- ``operator``: operators for eager mode, for compilers and in place.
- ``gradients``: the gradients of operators, and those of higher order.
- ``autocast``, ``layout``, ``parameters``: dtypes, memory layouts and checks of arguments.
- ``tiles``, ``partial_sums``, ``statistics``: tiles of a matrix, sums and statistics of shares.
- ``random``, ``rate``: random words, and the rate at which they drop.
- ``activation``: the activations of kernels.
"""
