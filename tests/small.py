"""Options under which the recipes whose networks are made for one size take images of any."""

ANY_SIZE = {
    "vae-gan-paper": {"arch": "conv", "feature_layer": None},
    "alpha-gan-paper": {"arch": "conv"},
    "factor-vae-paper": {"arch": "conv"},
    "ali-paper": {"arch": "conv"},
    "age-paper": {"arch": "conv", "norm_encoder": "none"},
}
