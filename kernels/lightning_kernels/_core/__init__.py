"""Helpers that the packages of all kernels import.

- ``triton``: Triton, or a stand-in where Triton is not installed.
- ``dispatch``: decides whether Triton, Triton's interpreter or ATen computes a call.
- ``crossover``: from which inputs on kernels are expected to be faster.
- ``launch``: launches kernels, and computes the sizes of grids.
- ``compiled``: launches compiled kernels with little work for the host.
- ``operator``: wraps kernel launches as operators for eager mode, compilers and in-place calls.
- ``gradients``: gradients of backward operators, and gradients of higher order.
- ``autocast``: the dtype of results under autocast.
- ``layout``: memory layouts.
- ``parameters``: checks of arguments.
- ``tiles``: tiles of a matrix.
- ``row_tiles``: tiles of whole rows, in pieces of a power of 2.
- ``partial_sums``: adds the partial sums that programs store.
- ``statistics``: merges the partial means and variances that programs or processes store.
- ``random``: random words.
- ``rate``: drop rates.
- ``activation``: activation functions for kernels.
"""
