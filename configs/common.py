"""Every configuration key, with its meaning, its unit and its one default. Run configs change what differs.

`pretrain()` is the recipe of BYOL for 100 epochs (deepmind-research/byol, configs/byol.py at 3d8692e: base tau 0.99, lr
0.45 per 256 images), ResNet-50, 224 px.
Areas are (low, high) fractions. Durations end in `_epochs` or `_steps`. A key's comment ends its line or, where it is
longer, precedes it; docs/make_reference.py makes the table of all keys from these comments.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def pretrain() -> ConfigDict:
    """Keys of `mode = 'pretrain'`: an objective, its views, and the alignment loss, each independent of the others."""
    config = ConfigDict()
    config.mode = "pretrain"
    config.seed = 0  # seed of the initial weights, the data order, the views and the augmentation
    config.batch_size = 256  # images in a step, over all devices together
    # Micro-batches of a step, of which one at a time is in memory. Each has its own batch statistics.
    config.accumulate_steps = 1
    config.total_epochs = 100.0  # length of the run in epochs
    config.total_steps = placeholder(int)  # length of the run in steps; if set, it replaces total_epochs
    # Where the weights come from: the workdir of a run, whose online network this one starts from, or a file of ResNet
    # weights (torchvision, timm, MoCo, SimSiam, SwAV, solo-learn, lightly, …). Empty: random weights.
    config.init_from = ""

    config.data = _data()
    # Decode each training image once, keep it as a square in ~/.cache/cvsa_jax, and cut all crops out of that square.
    config.data.cache = False

    config.saliency = ConfigDict()
    config.saliency.detector = "masks"  # detector whose maps are read, from `saliency/<data set>/<detector>`
    config.saliency.store = ""  # folder of the store, if it is another one
    config.saliency.threshold = 0.5  # saliency from which a cell belongs to the object
    config.saliency.warn_fallback = 0.05  # training warns if more than this share of maps shows no object

    config.views = ConfigDict()
    # How a view is made: Saliency Swap puts the most salient box of the image over the object of another image; Random
    # Resized Crop needs no maps.
    config.views.kind = "saliency_swap"
    config.views.size = 224  # side of the views, px
    # Images that are decoded together and serve as each other's backgrounds; divides the batch.
    config.views.group = 4
    config.views.swap_prob = 1.0  # probability that a view is swapped; otherwise it is a Random Resized Crop
    config.views.swapped_views = 2  # how many of the two views are swapped; with 1 only the first
    config.views.source_area = (0.1, 0.6)  # range of the area of the box that is cut out of the image
    config.views.paste_area = (0.2, 0.8)  # range of the area of the box that it replaces in the background image
    # Size of the replaced box: `cover` enlarges it until it holds the background's own object, `size` takes the random
    # size as it is.
    config.views.hole = "cover"
    config.views.cover = 0.95  # share of the background object's saliency that the replaced box must hold
    # Aspect of the replaced box: `bounded` within a factor of 4/3 of the crop's, `keep_aspect` equal to it, `stretch`
    # drawn independently of it.
    config.views.paste = "bounded"
    # Whether the two views of an image have different backgrounds or a common one.
    config.views.background = "different"
    config.views.canvas_min = 1.0  # smallest side of the window of the background image that is shown; 1: all of it
    config.views.crop_area = (0.08, 1.0)  # range of the area of a Random Resized Crop
    # Who makes the views: the host, or the device, which then holds all images and maps in its memory.
    config.views.where = "host"
    # Side in px of the squares that where=device and data.cache keep; default: twice the views' size.
    config.views.stored = placeholder(int)

    config.augment = ConfigDict()
    config.augment.view1 = _photometric(blur_prob=1.0, solarize_prob=0.0)
    config.augment.view2 = _photometric(blur_prob=0.1, solarize_prob=0.2)

    config.model = _model()

    config.objective = "byol"  # the loss on the pooled vectors
    config.contrast = ConfigDict()
    config.contrast.temperature = 0.2  # temperature of moco and simclr
    # Length of moco's queue of keys; default: 65,536, or about the number of images if that is smaller.
    config.contrast.queue = placeholder(int)

    config.align = ConfigDict()
    config.align.weight = 1.0  # weight of the alignment loss; 0 trains the objective alone
    # Meaning of the weight: `fixed`, a factor of the loss; `gradient`, the ratio at which the loss's gradient on the
    # features is held to the objective's, whatever the form.
    config.align.balance = "fixed"
    # Formula of the alignment loss. `mask_head` and `masked_dense` are controls without cross-view attention to align:
    # one predicts the mask, the other pulls objects together.
    config.align.form = "kl"
    config.align.temperature = 0.2  # tau of kl, contrast_bce, propagate and pairwise

    config.optim = _optim("lars", lr=0.45, weight_decay=1e-6)
    config.target = ConfigDict()
    # Coefficient of the target network's moving average at step 0, for batches of reference_batch images.
    config.target.tau = 0.99
    # Batch that tau is for; at another one it is tau ** (batch_size / reference_batch), as fast per image.
    config.target.reference_batch = 4096
    config.target.cosine = True  # tau rises to 1 along a cosine; False: it is constant

    config.watch = ConfigDict()
    # With labels: train a linear classifier on the features of each step. It sends no gradient to the network.
    config.watch.online_probe = True
    config.watch.knn_steps = 1000  # with labels: steps between two leave-one-out kNN evaluations; 0: none
    config.watch.knn_images = 2048  # training images in that kNN at most

    config.eval = _eval()
    _loop(config)
    return config


def linear() -> ConfigDict:
    """Keys of `mode = 'linear'`: probe what `init_from` names: a run, whose model it then is, a file of weights, or
    of features (docs/how-to/comparing.md)."""
    config = ConfigDict()
    config.mode = "linear"
    config.seed = 0  # seed of the validation part, the order of the batches, the lists of labels and the backgrounds
    # What is probed: the workdir of a run, a file of ResNet weights, or an .npz of features.
    config.init_from = ""
    config.data = _data()
    config.label_fractions = (1.0,)  # shares of the training images of each class that keep their labels: a probe each
    config.label_counts = ()  # numbers of labelled images per class: a further probe each
    config.label_draws = 1  # random lists of labelled images per fraction and count; figures are their averages
    config.eval = _eval()

    config.probe = ConfigDict()
    config.probe.learning_rates = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # candidates: validation chooses one
    config.probe.batch_size = 256  # images in a step
    config.probe.total_epochs = 100  # length of each fit
    # Share of the labelled images of each class that the learning rate is chosen on.
    config.probe.validation_share = 0.2
    # Number of validations, each on other images; no further one starts after 1,000 validation images.
    config.probe.folds = 5
    config.probe.seeds = 1  # fits with other seeds, from config.seed on; of several, mean and deviation are reported
    # Fit on fresh random crops in every epoch; False: on the features of centre crops, computed once.
    config.probe.augmented = False
    config.probe.crop_area = (0.08, 1.0)  # range of the area of these random crops
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
    config.seed = 0  # seed of the data order, the crops, the validation part and the lists of labels
    # Where the weights come from: the workdir of a pre-training run, whose model it then is, or a file of ResNet
    # weights. Empty: random weights.
    config.init_from = ""
    config.data = _data()
    # Decode each training image once, keep it as a square in ~/.cache/cvsa_jax, and cut all crops out of that square.
    config.data.cache = False
    # Shares of the training images of each class that keep their labels: a sweep and a training each.
    config.label_fractions = (1.0,)
    # Candidates per 256 images of batch, of which validation chooses one; a single one is used without a sweep.
    config.learning_rates = (0.001, 0.003, 0.01, 0.03, 0.1)
    config.validation_share = 0.2  # share of the labelled images of each class that the learning rate is chosen on
    config.batch_size = 64  # images in a step, over all devices together
    config.total_epochs = 100.0  # length of a training in epochs of all training images, also with fewer labels
    config.total_steps = placeholder(int)  # length of a training in steps; if set, it replaces total_epochs

    config.views = ConfigDict()
    config.views.size = 224  # side of the crops, px
    # Range of the area of a Random Resized Crop; a flip is the only other augmentation.
    config.views.crop_area = (0.5, 1.0)

    config.model = _model()  # unless init_from is a run
    config.optim = _optim("sgd", lr=0.01, weight_decay=1e-4)
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
    config.seed = 0  # seed of the initial weights, the data order and the augmentation
    config.batch_size = 16  # images in a step, over all devices together
    config.total_epochs = 62.0  # length of the run in epochs
    config.total_steps = placeholder(int)  # length of the run in steps; if set, it replaces total_epochs
    config.data = _data()
    config.data.procedural.update(train_per_class=40, size=128)
    config.size = 128  # side of the input, px: the whole image is resized to this square; the map has half its side
    config.threshold = 0.5  # saliency from which a pixel belongs to the object, for the figures at the end

    config.with_procedural = True  # also train on the train images of config.data.procedural
    config.augment = ConfigDict()
    config.augment.side = (0.6, 1.2)  # range of the random window's side; above 1 the border is repeated
    config.augment.aspect = 1.5  # largest ratio of the window's sides
    config.augment.composite_prob = 0.3  # share of images whose object is pasted over another image
    config.augment.colour = _photometric(blur_prob=0.0, solarize_prob=0.0)

    config.model = ConfigDict()
    # Channels of each scale, from half of the resolution down; multiples of 8.
    config.model.channels = (24, 32, 64, 96, 128)
    config.model.dtype = "float32"  # number type of the convolutions

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
    config.log_steps = 10  # steps between two lines of the log
    config.checkpoint_steps = 1000  # steps between two checkpoints; one more is written at the end and on interruption
    config.log_parameters = False  # print the table of parameters, which is always in `<workdir>/parameters.txt`
    config.profile_steps = 0  # number of steps that are profiled into `<workdir>/profile`
    config.wandb_project = ""  # project of Weights & Biases that the figures are also sent to; empty: none


def _model() -> ConfigDict:
    model = ConfigDict()
    model.depth = 50  # layers of the ResNet; 8 and 14 have three stages, for views below about 64 px
    model.width = 64  # channels of the first stage
    # First layers: `imagenet`, a 7x7 convolution of stride 2 and max-pooling; `small`, a 3x3 convolution of stride 2.
    model.stem = "imagenet"
    # Padding of strided convolutions: `symmetric` as in PyTorch; `same` as in TensorFlow, for weights trained with it
    # (DeepMind's BYOL).
    model.padding = "symmetric"
    model.head_hidden = 4096  # hidden units of projectors and predictors
    model.head_out = 256  # outputs of projectors and predictors: the dimension in which views are compared
    model.dtype = "float32"  # number type of the convolutions
    # Keep only the inputs of the stages for the backward pass: less memory, a quarter more computation.
    model.remat = False
    return model


SMALL_MODEL = {"depth": 8, "width": 32, "stem": "small", "head_hidden": 256, "head_out": 128}


def _optim(name: str, lr: float, weight_decay: float) -> ConfigDict:
    optim = ConfigDict()
    optim.name = name  # optimiser
    optim.lr = lr  # peak learning rate per 256 images of batch; finetune replaces it by those of its sweep
    optim.warmup_epochs = 10.0  # linear warm-up in epochs
    optim.warmup_steps = placeholder(int)  # linear warm-up in steps; if set, it replaces warmup_epochs
    optim.weight_decay = weight_decay  # coefficient of the weight decay
    optim.decay = "kernels"  # what decays: the kernels, or all parameters, biases and normalisation included
    optim.momentum = 0.9  # momentum of lars and sgd
    optim.nesterov = True  # Nesterov's momentum, in sgd
    # Learning rate of the predictors: `scheduled` as all others, `fixed` at its peak (SimSiam).
    optim.predictor = "scheduled"
    return optim


def _data() -> ConfigDict:
    data = ConfigDict()
    # Data set: folder, procedural (drawn birds), the official sets cub, aircraft, cars, nabirds, dogs, inat, pets,
    # flowers and food, or `tfds:<name>` such as `tfds:stanford_dogs` or `tfds:cars196:2.2.0`.
    data.kind = "folder"
    data.root = ""  # folder of the data set; for tfds only if it is not where TFDS keeps its sets
    # How a changed image is recognised: by its `contents`, for which each is read once, or by its size and the time of
    # its last change (`times`), where reading all takes too long, as on a mounted bucket.
    data.fingerprint = "contents"
    data.train_split = "train"  # split that networks and probes are trained on; `all` is every image
    data.test_split = "test"  # split that is evaluated on
    data.on_bad_image = "stop"  # at an unreadable image: stop, or skip it and name it
    data.procedural = ConfigDict()
    data.procedural.seed = 0  # seed of the drawn birds
    data.procedural.classes = 12  # kinds of birds
    data.procedural.train_per_class = 80  # training images of each kind
    data.procedural.test_per_class = 50  # test images of each kind
    data.procedural.size = 64  # side of the images, px
    data.procedural.scale = (0.19, 0.29)  # range of half a bird's length over the image's side
    # How classes differ: in small attributes of the same body, or by different bodies and nothing else.
    data.procedural.bodies = "same"
    # Colours of the background: `plain`, any; `telling`, in the train split those of the class.
    data.procedural.background = "plain"
    return data


def _eval() -> ConfigDict:
    evaluation = ConfigDict()
    evaluation.batch_size = 128  # images in a forward pass
    evaluation.knn = (1, 5, 10, 20, 50, 200)  # numbers of neighbours; leave-one-out on the training images chooses one
    evaluation.knn_temperature = 0.07  # a neighbour's vote weighs exp(cosine / temperature)
    # What an image's cells are compared with for its attention map: other images, or its own mirror image.
    evaluation.attention = "others"
    # Pooling of the feature map: `average` is usual, and an exported network does it; `attention` weights cells by
    # where the network looks, which mostly gave better features in the study (docs/study/README.md); `head` weights
    # them by a look head, `saliency` by saliency maps.
    evaluation.pooling = "average"
    # For pooling=head: file of `python -m cvsa_jax.look fit`; empty: a head is fitted to maps of the training images.
    evaluation.look = ""
    # Maps for pooling=saliency, and for pooling=head without a file: a detector, whose store is
    # `saliency/<data set>/<detector>`, or the folder of a store.
    evaluation.maps = ""
    evaluation.power = 2.0  # for pooling=saliency: exponent of the maps, each scaled to [0, 1]
    # Method that draws features in two dimensions on the page of `evaluate`; umap needs umap-learn.
    evaluation.embedding = "pca"
    evaluation.size = placeholder(int)  # side of the evaluated images, px; default: views.size of the run
    # Shorter side in px that images are resized to before the centre crop; default: size · 256/224.
    evaluation.resize = placeholder(int)
    return evaluation


def _photometric(blur_prob: float, solarize_prob: float) -> ConfigDict:
    view = ConfigDict()
    view.brightness = 0.4  # strength of the random change of brightness
    view.contrast = 0.4  # strength of the random change of contrast
    view.saturation = 0.2  # strength of the random change of saturation
    view.hue = 0.1  # strength of the random change of hue
    view.jitter_prob = 0.8  # probability of the four changes of colour above
    view.grayscale_prob = 0.2  # probability of a grey image
    view.blur_prob = blur_prob  # probability of a Gaussian blur
    view.solarize_prob = solarize_prob  # probability of solarization
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
