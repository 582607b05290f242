"""Small configurations for several tests that compare the bits of runs."""

FEW_STEPS = "max_steps=4"  # an epoch with its short last batch, and the start of another epoch
DATA = ["data=synthetic", "data.size=8", "data.classes=5", "data.train_samples=21"]
DATA += ["data.test_samples=7", "batch_size=8", "epochs=4", "eval_every=1"]  # 21 = 2 * 8 + 5
VIT = ["model=vit", "model.dim=16", "model.depth=4", "model.heads=2", "model.dropout=0.1"]
VIT += ["model.drop_path=0.3"]
RESNET = ["model=resnet32", "model.depth=14", "model.drop_path=0.3"]
SGD = ["optim=sgd", "optim.lr=0.05"]

METHODS = {
    "predsim": ["local=predsim"],
    "infopro": ["local=infopro"],
    "contrastive": ["local=infopro", "local.loss=contrastive"],
    "auglocal": ["local=auglocal"],
    "slm": ["local=fba"],
    "fba": ["fba=on"],
    "fba last two": ["fba=on", "fba.features=2", "fba.fusion=add"],
    "fba at the input": ["fba=on", "fba.join=input", "fba.measure_zeroed=true"],
    "fba probe": ["fba=on", "fba.trains=probe", "fba.normalize=true", "fba.measure_zeroed=true"],
}
"""Local methods, with some of their options."""
