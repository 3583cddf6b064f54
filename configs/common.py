"""Every configuration key, with its meaning, its unit and its one default. Run configs change what differs.

`pretrain()` is the recipe of BYOL for 100 epochs (deepmind-research/byol, configs/byol.py at 3d8692e: base tau 0.99, lr
0.45 per 256 images), ResNet-50, 224 px.
Areas are (low, high) fractions. Durations end in `_epochs` or `_steps`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def pretrain() -> ConfigDict:
    """Keys of `mode = 'pretrain'`: an objective, its views, and the alignment loss, each independent of the others."""
    config = ConfigDict()
    config.mode = "pretrain"
    config.seed = 0  # of the initial weights, the data order, the views and the augmentation
    config.batch_size = 256  # global
    config.accumulate_steps = 1  # micro-batches of a step, one in memory at a time; batch statistics are those of each
    config.total_epochs = 100.0
    config.total_steps = placeholder(int)  # where given, instead of total_epochs
    config.init_from = ""  # workdir of the run whose online network this one starts from, or a file with a ResNet's
    # weights, of torchvision, timm, MoCo, SimSiam, SwAV, solo-learn, lightly, … (docs/weights.md)

    config.data = _data()
    # True: training images are decoded once, kept in ~/.cache/cvsa_jax as squares, and all crops are cut out of these.
    config.data.cache = False

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
    config.views.hole = "cover"  # that box is made as much larger as it takes to hold the background's object; or size
    config.views.cover = 0.95  # of the object's saliency, which the box then holds
    config.views.paste = "bounded"  # its aspect within 4/3 of the crop's; or keep_aspect: the crop's; or stretch: any
    config.views.background = "different"  # of the two views of an image; or common
    config.views.canvas_min = 1.0  # smallest side of the part of the background that is shown
    config.views.crop_area = (0.08, 1.0)  # of Random Resized Crop
    config.views.where = "host"  # makes the views; or device, which then holds all images and maps in its memory
    config.views.stored = placeholder(int)  # px of the squares of where=device and of data.cache; 2 · size if not given

    config.augment = ConfigDict()
    config.augment.view1 = _photometric(blur_prob=1.0, solarize_prob=0.0)
    config.augment.view2 = _photometric(blur_prob=0.1, solarize_prob=0.2)

    config.model = _model()

    config.objective = "byol"  # or moco, simclr, simsiam: what the pooled vectors are trained for
    config.contrast = ConfigDict()
    config.contrast.temperature = 0.2  # of moco and simclr
    config.contrast.queue = placeholder(int)  # keys of moco; 65,536, or about as many as images if they are fewer

    config.align = ConfigDict()
    config.align.weight = 1.0  # 0 is the plain objective
    config.align.balance = "fixed"  # the weight is the loss's factor; or gradient: the ratio at which its gradient on
    # the features is held to the objective's, whatever the form
    config.align.form = (
        "kl"  # kl, contrast_bce, propagate, cosine, minmax, pairwise; the controls mask_head, masked_dense
    )
    config.align.temperature = 0.2  # tau in kl, contrast_bce, propagate, pairwise

    config.optim = _optim("lars", lr=0.45, weight_decay=1e-6)
    config.target = ConfigDict()
    config.target.tau = 0.99  # coefficient of the moving average at step 0, for batches of reference_batch images
    config.target.reference_batch = 4096  # at another batch tau ** (batch_size / reference_batch), as fast by images
    config.target.cosine = True  # tau rises to 1 along a cosine; False: it stays

    config.watch = ConfigDict()  # figures that training itself does not see
    config.watch.online_probe = True  # where there are labels: a linear classifier learns beside, gives nothing back
    config.watch.knn_steps = 1000  # where there are labels: leave-one-out kNN of training images so often; 0: never
    config.watch.knn_images = 2048  # at most

    config.eval = _eval()
    _loop(config)
    return config


def linear() -> ConfigDict:
    """Keys of `mode = 'linear'`: probe what `init_from` names: a run, whose model it then is, a file of weights, or
    of features (docs/how-to/comparing.md)."""
    config = ConfigDict()
    config.mode = "linear"
    config.seed = 0  # of the validation part, the order of the batches, the lists of labels, and the backgrounds
    config.init_from = ""
    config.data = _data()
    config.label_fractions = (1.0,)  # of the train images, drawn by class: a probe for each
    config.label_counts = ()  # and so many images of each class: a probe for each
    config.label_draws = 1  # lists of labelled images of each fraction and count, over which figures are averaged
    config.eval = _eval()

    config.probe = ConfigDict()
    config.probe.learning_rates = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    config.probe.batch_size = 256
    config.probe.total_epochs = 100
    config.probe.validation_share = 0.2  # of the labelled images, by class, on which the learning rate is chosen
    config.probe.folds = 5  # so many times, with other images; at most until 1000 images have been asked
    config.probe.seeds = 1  # from config.seed on; of several, mean and deviation are reported
    config.probe.augmented = False  # False: on cached features of centre crops; True: on fresh crops in every epoch
    config.probe.crop_area = (0.08, 1.0)  # of the augmented crops
    return config


def few_labels(config: ConfigDict, options: set[str]) -> None:
    """Applies the option `few`: the linear probe with few labels, three lists of each number. 15, 30 and 50 % are those
    of thuml/Transfer-Learning-Library (docs/how-to/comparing.md)."""
    if "few" in options:
        config.label_counts, config.label_draws = (1, 2, 4, 8, 16), 3
        config.label_fractions = (0.15, 0.3, 0.5, 1.0)


def full_protocol(config: ConfigDict, options: set[str]) -> None:
    """Applies the option `full`: the linear probe on augmented crops, three seeds, as papers report it."""
    if "full" in options:
        config.probe.augmented, config.probe.folds, config.probe.seeds = True, 1, 3


def finetune() -> ConfigDict:
    """Keys of `mode = 'finetune'`: the whole network learns from labels, from a run, a weights file, or scratch."""
    config = ConfigDict()
    config.mode = "finetune"
    config.seed = 0  # of the data order, the crops, the validation part and the lists of labels
    config.init_from = ""  # workdir of a pre-training run, whose model it then is; or a file of weights; or scratch
    config.data = _data()
    config.data.cache = False  # True: as in pretrain
    config.label_fractions = (1.0,)  # of the train images, drawn by class: a sweep and a training for each
    config.learning_rates = (0.001, 0.003, 0.01, 0.03, 0.1)  # per 256 images of batch; one: no sweep
    config.validation_share = 0.2  # of the labelled images, by class, on which the learning rate is chosen
    config.batch_size = 64  # global
    config.total_epochs = 100.0  # of all train images, also where fewer labels are used
    config.total_steps = placeholder(int)  # where given, instead of total_epochs

    config.views = ConfigDict()
    config.views.size = 224  # px
    config.views.crop_area = (0.5, 1.0)  # of Random Resized Crop, which with a flip is all the augmentation

    config.model = _model()  # where init_from is no run
    config.optim = _optim("sgd", lr=0.01, weight_decay=1e-4)  # lr is the sweep's
    config.optim.warmup_epochs = 0.0
    config.eval = _eval()
    _loop(config)
    return config


def finetune_options(config: ConfigDict, arg: str) -> None:
    """Applies the options of a fine-tuning config: `448` px, `scratch` (the supervised baseline without any
    pre-training: a longer, faster schedule), `small` (a laptop's network and views, as in `small`)."""
    options_given = options(arg, "448", "scratch", "small")
    if "448" in options_given:
        config.views.size = 448
    if "scratch" in options_given:
        config.learning_rates = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
        config.total_epochs, config.optim.warmup_epochs = 200.0, 5.0
    if "small" in options_given:
        config.views.size = config.eval.size = config.eval.resize = 64
        config.model.update(SMALL_MODEL)
        config.batch_size = 32
        config.learning_rates = (0.03, 0.1, 0.3, 1.0)


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
    _loop(config)
    config.checkpoint_steps = 500
    return config


MODES = {"pretrain": pretrain, "linear": linear, "finetune": finetune, "saliency_unet": saliency_unet}


def tfds(config: ConfigDict, name: str, test_split: str) -> None:
    """Changes the data set to one of TFDS, prepared below TFDS's own folder or `config.data.root`."""
    config.data.kind = f"tfds:{name}"
    config.data.test_split = test_split


def _loop(config: ConfigDict) -> None:
    config.log_steps = 10
    config.checkpoint_steps = 1000  # besides those at the end and at an interruption
    config.log_parameters = False  # print the table of parameters, which is in <workdir>/parameters.txt
    config.profile_steps = 0  # so many steps are traced into <workdir>/profile
    config.wandb_project = ""  # where given, the figures also go to Weights & Biases


def _model() -> ConfigDict:
    model = ConfigDict()
    model.depth = 50  # 18, 34, 50; 8 and 14 have three stages, for views below about 64 px
    model.width = 64  # channels of the first stage
    model.stem = "imagenet"  # 7x7 stride 2 and max-pool, or small: 3x3 stride 2
    model.padding = "symmetric"  # as torchvision's; or same: TensorFlow's, of weights trained so (DeepMind's BYOL)
    model.head_hidden = 4096
    model.head_out = 256
    model.dtype = "float32"  # of the convolutions; or bfloat16
    model.remat = False  # keep only the stages' inputs for the backward pass: less memory, a quarter more to compute
    return model


SMALL_MODEL = {"depth": 8, "width": 32, "stem": "small", "head_hidden": 256, "head_out": 128}


def _optim(name: str, lr: float, weight_decay: float) -> ConfigDict:
    optim = ConfigDict()
    optim.name = name  # lars, adam, sgd
    optim.lr = lr  # per 256 images of batch
    optim.warmup_epochs = 10.0
    optim.warmup_steps = placeholder(int)  # where given, instead of warmup_epochs
    optim.weight_decay = weight_decay
    optim.decay = "kernels"  # what the weight decay is on; or all: also biases and normalisation
    optim.momentum = 0.9
    optim.nesterov = True  # of sgd
    optim.predictor = "scheduled"  # or fixed: the predictors' learning rate stays at its peak (SimSiam)
    return optim


def _data() -> ConfigDict:
    data = ConfigDict()
    data.kind = "folder"  # cub, folder, procedural, or tfds:<name> as tfds:stanford_dogs or tfds:cars196:2.2.0
    data.root = ""  # of tfds: where its sets are, if not where TFDS keeps them
    data.fingerprint = "contents"  # of the images, which are read for it once; or times: of their sizes and times of
    # change, where reading all would take too long, as on a mounted bucket
    data.train_split = "train"  # pre-training and the probe's fitting; `all` is every image
    data.test_split = "test"
    data.on_bad_image = "stop"  # or skip: leave unreadable images out, and say which
    data.procedural = ConfigDict()
    data.procedural.seed = 0
    data.procedural.classes = 12
    data.procedural.train_per_class = 80
    data.procedural.test_per_class = 50
    data.procedural.size = 64  # px
    data.procedural.scale = (0.19, 0.29)  # of half a bird's length over the image's side
    data.procedural.bodies = "same"  # classes differ in small attributes; or different: in the whole body, coarsely
    data.procedural.background = "plain"  # or telling: in the train split it says the class
    return data


def _eval() -> ConfigDict:
    evaluation = ConfigDict()
    evaluation.batch_size = 128
    evaluation.knn = (1, 5, 10, 20, 50, 200)  # neighbours; leave-one-out on the train images chooses among them
    evaluation.knn_temperature = 0.07  # a neighbour's vote weighs exp(cosine / temperature)
    evaluation.attention = "others"  # an image's cells are compared with those of the other images; or mirror: of its
    # own mirror image
    # Over the cells of the feature map. `average` is how others measure and what an exported network returns;
    # `attention`, weighted by where the network looks, mostly read better in the study (docs/study/README.md).
    evaluation.pooling = "average"  # or attention; or head, by a look head; or saliency, by maps
    evaluation.look = ""  # head: the file of `python -m cvsa_jax.look fit`; else one is fitted to maps of train images
    evaluation.maps = ""  # head without a file, saliency: detector of the store saliency/<data set>/…, or its folder
    evaluation.power = 2.0  # saliency: of the maps, each scaled to [0, 1]
    evaluation.embedding = "pca"  # or umap, which needs umap-learn: features in two dimensions, on `evaluate`'s page
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
    chosen = set(filter(None, arg.split(",")))
    if unknown := chosen - set(known):
        raise ValueError(f"unknown option {', '.join(sorted(unknown))}; known: {', '.join(known) or 'none'}")
    return chosen


def small(config: ConfigDict) -> None:
    """Changes a pre-training config to one that a laptop trains from scratch in minutes to an hour."""
    config.batch_size = 32
    config.total_steps = 800
    config.views.size = 48
    for view in (config.augment.view1, config.augment.view2):
        view.blur_prob = 0.0  # a blur of up to 2 px, made for 224 px, would erase the details that matter
    config.model.update(SMALL_MODEL)
    config.optim.name, config.optim.lr, config.optim.warmup_steps = "adam", 8e-3, 40  # 1e-3 at this batch size
    config.target.tau = min(config.target.tau, 0.99)  # it would hardly move in so few steps
    config.target.reference_batch = 32
    # Larger than the views: objects then look about as large as in the views, which are zoomed crops.
    config.eval.size = config.eval.resize = 64
    config.checkpoint_steps = config.watch.knn_steps = 200


def scratch(config: ConfigDict) -> None:
    """Changes a pre-training config to a recipe for a small set without any stage 1: Adam, and a target whose decay is
    fixed, which matters on small sets (the author of SimCore, openssl-simcore, issue 2: learning rate 1e-3, weight
    decay 1e-6, batch 512, 1000 epochs, tau .996)."""
    config.batch_size, config.total_epochs = 512, 1000.0
    config.optim.name, config.optim.lr, config.optim.weight_decay = "adam", 5e-4, 1e-6  # 1e-3 at this batch size
    config.target.tau, config.target.reference_batch, config.target.cosine = 0.996, 512, False


HARDWARE = ("gpu8gb", "gpu24gb", "tpu_v4_32")


def hardware(config: ConfigDict, options: set[str]) -> None:
    """Applies the options `gpu8gb`, `gpu24gb`, `tpu_v4_32`: bfloat16, and ResNet-50 at 224 px in the memory of a device
    of this kind. The last one's batch of 4096 is for large sets. The memory is calculated, not measured
    (docs/measurements/scaling.md: 88 MB for each image at once, and .7 GB besides); the compiler's plan is printed at
    the start."""
    chosen = options & set(HARDWARE)
    if len(chosen) > 1:
        raise ValueError(f"options {', '.join(sorted(chosen))}: one kind of device at a time")
    if chosen:
        config.model.dtype = "bfloat16"
    if "gpu8gb" in chosen:
        config.accumulate_steps = (config.get_ref("batch_size") + 31) // 32  # images at once: 3.5 GB
    if "gpu24gb" in chosen:
        config.accumulate_steps = (config.get_ref("batch_size") + 127) // 128  # at once: 12 GB
    if "tpu_v4_32" in chosen:
        config.batch_size = 4096  # 256 on each of 16 chips: 23 of 34 GB
