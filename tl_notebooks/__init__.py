__version__ = "0.2.0"
"Expand the model you have. Import this before fastai, timm or transformers: it guards a torchvision that cannot load."
from .core import install_guard  # noqa: E402,F401
