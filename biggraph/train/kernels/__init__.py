"""The training step compiled for the processor: the same numbers as `train.step`, without autograd.

`train.step` is the definition; here each piece is written with its own derivative, over blocks that
stay in the cache. An operator, a comparator or a loss is one function forward and one backward,
chosen by a number once a block: combinations are not written out.

Axes: B edges of a batch, C chunks, P positives of a chunk, N candidates drawn from the loaded
partition, M from outside, K = P + N + M keys (the true entities first), U distinct rows, D
dimension.

Files: `jit` how functions are compiled; `mathematics` vectorised functions; `draws` random
candidates; `distinct` which rows a batch uses, and moving them; `operators`, `comparators`,
`losses`, `penalty` the pieces; `chunk` one side of one chunk; `batch` one batch; `sampler`, `room`,
`step` what Python does between them; `blas` one thread for products.
"""
