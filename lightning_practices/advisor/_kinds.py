"""Names of torch's functions, in groups."""

LAYERS = frozenset(
    {"linear", "bilinear", "addmm", "embedding", "embedding_bag", "matmul", "mm", "bmm", "einsum"}
    | {f"conv{transpose}{n}d" for transpose in ("", "_transpose") for n in (1, 2, 3)}
    | {name + cell for name in ("lstm", "gru", "rnn_tanh", "rnn_relu") for cell in ("", "_cell")}
    | {"multi_head_attention_forward"}
)
NORMS = frozenset(
    {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "sync_batch_norm"}
)
BOUNDED = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "hardsigmoid": (0.0, 1.0),
           "hardtanh": (-1.0, 1.0), "softmax": (0.0, 1.0), "softsign": (-1.0, 1.0)}  # fmt: skip
CLAMPS = frozenset({"clamp", "clip", "clamp_min", "clamp_max"})
RECTIFIERS = frozenset({"relu", "relu6", "threshold"})
ACTIVATIONS = frozenset(
    {"relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish",
     "hardswish", "softplus", "glu", "logsigmoid", "log_sigmoid", "sigmoid", "tanh", "hardsigmoid",
     "hardtanh", "softsign", "threshold"}
)  # fmt: skip
SOFTMAXES = frozenset({"softmax", "log_softmax", "softmin"})
PROBABILITIES = frozenset(
    {"sigmoid", "expit", "hardsigmoid", "softmax", "softmin", "gumbel_softmax"}
)
DROPOUTS = frozenset(
    {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
     "feature_dropout"}
)  # fmt: skip

# Functions whose result holds the elements of their first argument, in another shape or place.
VIEWS = frozenset(
    {"reshape", "view", "squeeze", "unsqueeze", "flatten", "unflatten", "permute", "transpose", "t",
     "movedim", "moveaxis", "swapaxes", "swapdims", "contiguous", "clone", "__getitem__", "expand",
     "view_as", "reshape_as", "expand_as", "ravel", "select", "narrow", "chunk", "split", "unbind",
     "tensor_split", "repeat", "masked_select", "index_select", "gather", "flip", "roll", "__get__",
     "tile", "alias", "rename", "refine_names", "requires_grad_", "take_along_dim", "unfold"}
)  # fmt: skip
CASTS = frozenset(
    {"float", "double", "half", "bfloat16", "to", "type", "type_as", "cpu", "cuda", "long", "int",
     "bool", "byte"}
)  # fmt: skip
PASSED = VIEWS | CASTS
