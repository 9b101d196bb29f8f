"""Where models come from."""

import huggingface_hub
import pytest
import skimage.data
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform

from normstream.adaptation import HostingError, ModelSpec, Preprocessing, class_names, labels, load_model


@pytest.fixture(scope="module")
def lite0():
    return load_model(ModelSpec.parse("tf_efficientnet_lite0"))


@pytest.mark.parametrize(
    ("name", "side", "parameters"),
    [("tf_efficientnet_lite1", 240, 5_416_680), ("tf_efficientnet_lite2", 260, 6_092_072)],
)
def test_the_other_bundled_models(name, side, parameters):
    hosted = load_model(ModelSpec.parse(name))
    assert hosted.preprocessing.input_size == (3, side, side)
    assert sum(value.numel() for value in hosted.network.parameters()) == parameters


def test_the_bundled_model_knows_a_cat_from_a_cup(lite0):
    names = labels(lite0)
    for picture, expected in (
        (skimage.data.chelsea(), {"tabby", "tiger cat", "Egyptian cat"}),
        (skimage.data.coffee(), {"espresso", "cup"}),
    ):
        with torch.inference_mode():
            logits = lite0.network(lite0.preprocessing(Image.fromarray(picture)).unsqueeze(0))
        assert names[logits.argmax().item()] in expected


def test_labels_are_imagenets_or_unknown(lite0, small):
    assert labels(lite0)[340] == "zebra"
    assert labels(small) is None
    assert class_names(lite0) == tuple(labels(lite0))
    assert class_names(small) == ("0", "1", "2", "3", "4")


def test_labels_are_told_apart(lite0):
    """ImageNet has two cranes, a bird and a machine, and two maillots."""
    assert len(set(labels(lite0))) == 1000
    assert [labels(lite0)[index] for index in (134, 517)] == ["crane", "crane (517)"]


@pytest.mark.parametrize(("name", "parameters"), [("resnet10", 1_970_122), ("resnet18", 11_173_962)])
def test_networks_for_cifar_from_a_seed(name, parameters):
    before = torch.get_rng_state()
    hosted = load_model(ModelSpec.parse(f"architecture=cifar_{name},seed=3,classes=10"))
    assert torch.equal(torch.get_rng_state(), before)
    assert (hosted.architecture, hosted.classes) == (f"cifar_{name}", 10)
    assert sum(value.numel() for value in hosted.network.parameters()) == parameters
    assert hosted.preprocessing.input_size == (3, 32, 32)
    assert hosted.preprocessing.mean == (0.4914, 0.4822, 0.4465)
    again, other = (load_model(ModelSpec(architecture=f"cifar_{name}", seed=seed, classes=10)) for seed in (3, 4))
    assert hosted.fingerprint == again.fingerprint != other.fingerprint


def test_a_network_for_cifar_takes_a_checkpoint(tmp_path):
    weights = timm.create_model("cifar_resnet10", num_classes=4).state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    hosted = load_model(
        ModelSpec.parse(f"architecture=cifar_resnet10,checkpoint={tmp_path}/weights.safetensors,classes=4")
    )
    assert torch.equal(hosted.network.state_dict()["conv1.weight"], weights["conv1.weight"])
    assert weights["conv1.weight"].shape == (64, 3, 3, 3)


def test_preprocessing_is_timms_own(lite0):
    image = Image.effect_mandelbrot((300, 200), (-3, -2.5, 2, 2.5), 50).convert("RGB")
    config = timm.data.resolve_data_config({}, model=lite0.network)
    assert torch.equal(lite0.preprocessing(image), create_transform(**config, is_training=False)(image))
    assert lite0.preprocessing.mean == (0.5, 0.5, 0.5)
    vit = Preprocessing.of(timm.create_model("vit_tiny_patch16_224"))
    assert vit.mean == (0.5, 0.5, 0.5)
    assert vit.digest != lite0.preprocessing.digest


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_checkpoint(tmp_path, suffix, wrap):
    weights = timm.create_model("resnet10t", num_classes=7).state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({wrap: weights} if wrap else weights, path)
    elif wrap is None:
        save_file(weights, path)
    else:
        return
    hosted = load_model(ModelSpec.parse(f"name=mine,architecture=resnet10t,checkpoint={path},classes=7"))
    assert (hosted.name, hosted.classes) == ("mine", 7)
    assert torch.equal(hosted.network.state_dict()["fc.weight"], weights["fc.weight"])


def test_models_that_cannot_be_loaded_are_refused_with_what_to_do(tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    pickled = tmp_path / "code.pth"
    torch.save({"weight": pytest.raises}, pickled)
    fitting = tmp_path / "other.safetensors"
    save_file(timm.create_model("resnet10t", num_classes=9).state_dict(), fitting)
    for text, words in [
        ("resnet9000", ["timm knows no architecture 'resnet9000'"]),
        (f"architecture=resnet10t,checkpoint={tmp_path}/none.pth,classes=7", ["there is no checkpoint"]),
        (f"architecture=resnet10t,checkpoint={broken},classes=7", ["cannot read checkpoint"]),
        (f"architecture=resnet10t,checkpoint={pickled},classes=7", ["cannot read checkpoint"]),
        (f"architecture=resnet10t,checkpoint={fitting},classes=7", ["do not fit the architecture"]),
    ]:
        with pytest.raises(HostingError) as caught:
            load_model(ModelSpec.parse(text))
        assert all(word in str(caught.value) for word in words)


def test_no_weights_without_a_hub_says_what_to_do(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HostingError, match=r"no pretrained weights for 'resnet10t'.*tf_efficientnet_lite0"):
        load_model(ModelSpec.parse("resnet10t"))


@pytest.mark.parametrize(
    "text",
    [
        "checkpoint=x.pth",
        "architecture=resnet18,classes=3",
        "architecture=resnet18,nonsense=1",
        "architecture=resnet18,seed=1",
        "architecture=resnet18,seed=-1,classes=3",
        "architecture=resnet18,seed=1,checkpoint=x.pth,classes=3",
        "name=../x,architecture=resnet18",
    ],
)
def test_wrong_specifications_are_refused(text):
    with pytest.raises(ValueError, match="ModelSpec"):
        ModelSpec.parse(text)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(HostingError, match="cannot put 'tf_efficientnet_lite0' on device 'cuda:99'"):
        load_model(ModelSpec.parse("tf_efficientnet_lite0"), "cuda:99")
