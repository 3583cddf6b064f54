"""Every configuration key, with its meaning, its unit and its one default. Run configs change what differs.

`pretrain()` is the recipe of BYOL for 100 epochs (DESIGN: base tau 0.99, lr 0.45 per 256 images), ResNet-50, 224 px.
Areas are (low, high) fractions. Durations end in `_epochs` or `_steps`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def pretrain() -> ConfigDict:
    """Keys of `mode = 'pretrain'`: BYOL (`align.weight = 0`) or CVSA."""
    config = ConfigDict()
    config.mode = "pretrain"
    config.seed = 0  # of the initial weights, the data order, the views and the augmentation
    config.batch_size = 256  # global
    config.total_epochs = 100.0
    config.total_steps = placeholder(int)  # where given, instead of total_epochs
    config.init_from = ""  # workdir of the run whose online network this one starts from

    config.data = _data()

    config.saliency = ConfigDict()
    config.saliency.detector = "masks"  # the store read: saliency/<data set>/<detector>
    config.saliency.store = ""  # or this folder
    config.saliency.threshold = 0.5  # of the map, for the stored box and area
    config.saliency.warn_fallback = 0.05  # share of maps without a cell at the threshold above which training warns

    config.views = ConfigDict()
    config.views.kind = "saliency_swap"  # or random_resized_crop
    config.views.size = 224  # px
    config.views.group = 4  # images decoded together, which lend each other their backgrounds; divides the batch
    config.views.swap_prob = 1.0  # a view that is not swapped is a Random Resized Crop
    config.views.swapped_views = 2  # or 1: only view 1 is swapped
    config.views.source_area = (0.1, 0.6)  # of the box cut from the source image
    config.views.paste_area = (0.2, 0.8)  # of the box replaced on the background image
    config.views.paste = "stretch"  # or keep_aspect: the replaced box takes the crop's aspect
    config.views.canvas_min = 1.0  # smallest side of the part of the background that is shown
    config.views.crop_area = (0.08, 1.0)  # of Random Resized Crop

    config.augment = ConfigDict()
    config.augment.view1 = _photometric(blur_prob=1.0, solarize_prob=0.0)
    config.augment.view2 = _photometric(blur_prob=0.1, solarize_prob=0.2)

    config.model = ConfigDict()
    config.model.depth = 50  # 18, 34, 50; 8 and 14 have three stages, for views below about 64 px
    config.model.width = 64  # channels of the first stage
    config.model.stem = "imagenet"  # 7x7 stride 2 and max-pool, or small: 3x3 stride 2
    config.model.head_hidden = 4096
    config.model.head_out = 256
    config.model.dtype = "float32"  # of the convolutions; or bfloat16

    config.align = ConfigDict()
    config.align.weight = 1.0  # 0 is plain BYOL
    config.align.form = "kl"  # kl, contrast_bce, propagate, cosine, minmax, pairwise, mask_head (the control)

    config.optim = _optim("lars", lr=0.45, weight_decay=1e-6)
    config.target = ConfigDict()
    config.target.tau = 0.99  # coefficient of the moving average at step 0
    config.target.cosine = True  # tau rises to 1 along a cosine; False: it stays

    config.eval = _eval()

    config.log_steps = 10
    config.checkpoint_steps = 1000  # besides the one at the end
    return config


def linear() -> ConfigDict:
    """Keys of `mode = 'linear'`: probe the frozen backbone of the run `init_from`; its model is that run's."""
    config = ConfigDict()
    config.mode = "linear"
    config.seed = 0
    config.init_from = ""
    config.data = _data()
    config.eval = _eval()

    config.probe = ConfigDict()
    config.probe.learning_rates = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    config.probe.batch_size = 256
    config.probe.total_epochs = 100
    config.probe.validation_share = 0.2  # of the train split, by class, on which the learning rate is chosen
    return config


def saliency_unet() -> ConfigDict:
    """Keys of `mode = 'saliency_unet'`: train the supervised saliency detector on a source with masks."""
    config = ConfigDict()
    config.mode = "saliency_unet"
    config.seed = 0
    config.batch_size = 16
    config.total_epochs = 62.0
    config.total_steps = placeholder(int)  # where given, instead of total_epochs
    config.data = _data()
    config.data.procedural.update(train_per_class=40, size=128)
    config.size = 128  # px; the whole image is squeezed to it, the map has half of it
    config.threshold = 0.5  # of the map, for the figures at the end

    config.with_procedural = True  # also train on the train images of config.data.procedural
    config.augment = ConfigDict()
    config.augment.side = (0.6, 1.2)  # range of the random window's side; above 1 the border is repeated
    config.augment.aspect = 1.5  # the window is up to this factor wider or higher
    config.augment.composite_prob = 0.3  # share of images whose object is laid over another image
    config.augment.colour = _photometric(blur_prob=0.0, solarize_prob=0.0)

    config.model = ConfigDict()
    config.model.channels = (24, 32, 64, 96, 128)  # of each scale, from half of the resolution down; multiples of 8
    config.model.dtype = "float32"  # of the convolutions; or bfloat16

    config.optim = _optim("adam", lr=0.032, weight_decay=1e-4)
    config.optim.warmup_epochs = 2.0
    config.log_steps = 10
    config.checkpoint_steps = 500  # besides the one at the end
    return config


def _optim(name: str, lr: float, weight_decay: float) -> ConfigDict:
    optim = ConfigDict()
    optim.name = name  # lars, adam, sgd
    optim.lr = lr  # per 256 images of batch
    optim.warmup_epochs = 10.0
    optim.warmup_steps = placeholder(int)  # where given, instead of warmup_epochs
    optim.weight_decay = weight_decay
    optim.momentum = 0.9
    return optim


def _data() -> ConfigDict:
    data = ConfigDict()
    data.kind = "folder"  # cub, folder, procedural
    data.root = ""
    data.train_split = "train"  # pre-training and the probe's fitting; `all` is every image
    data.test_split = "test"
    data.on_bad_image = "stop"  # or skip: leave unreadable images out, and say which
    data.procedural = ConfigDict()
    data.procedural.seed = 0
    data.procedural.classes = 12
    data.procedural.train_per_class = 80
    data.procedural.test_per_class = 50
    data.procedural.size = 64  # px
    return data


def _eval() -> ConfigDict:
    evaluation = ConfigDict()
    evaluation.batch_size = 128
    evaluation.knn = 20  # neighbours; 0 leaves kNN out after pre-training
    evaluation.size = placeholder(int)  # px; the run's views.size where not given
    evaluation.resize = placeholder(int)  # px of the shorter side before the centre crop; size · 256/224 if not given
    return evaluation


def _photometric(blur_prob: float, solarize_prob: float) -> ConfigDict:
    view = ConfigDict()
    view.brightness, view.contrast, view.saturation, view.hue = 0.4, 0.4, 0.2, 0.1
    view.jitter_prob, view.grayscale_prob = 0.8, 0.2
    view.blur_prob, view.solarize_prob = blur_prob, solarize_prob
    return view


def options(arg: str, *known: str) -> set[str]:
    """The comma-separated options behind the colon of `--config=configs/x.py:a,b`; ValueError at an unknown one."""
    given = set(filter(None, arg.split(",")))
    if unknown := given - set(known):
        raise ValueError(f"unknown option {', '.join(sorted(unknown))}; known: {', '.join(known) or 'none'}")
    return given


def small(config: ConfigDict) -> None:
    """Changes a pre-training config to one that a laptop trains from scratch in minutes to an hour."""
    config.batch_size = 32
    config.total_steps = 800
    config.views.size = 48
    for view in (config.augment.view1, config.augment.view2):
        view.blur_prob = 0.0  # a blur of up to 2 px, made for 224 px, would erase the details that matter
    config.model.depth, config.model.width, config.model.stem = 8, 32, "small"
    config.model.head_hidden, config.model.head_out = 256, 128
    config.optim.name, config.optim.lr, config.optim.warmup_steps = "adam", 8e-3, 40  # 1e-3 at this batch size
    # Larger than the views: objects then look about as large as in the views, which are zoomed crops.
    config.eval.size = config.eval.resize = 64
    config.checkpoint_steps = 200


def byol(config: ConfigDict) -> None:
    """Changes a pre-training config to stage 1: plain BYOL, which needs no saliency maps."""
    config.views.kind = "random_resized_crop"
    config.align.weight = 0.0
