"""Changes to a pretrained model: frozen parts, heads, tops, shared layers, inputs."""
