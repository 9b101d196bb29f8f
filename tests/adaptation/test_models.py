"""Where models come from."""

import huggingface_hub
import pytest
import skimage.data
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform

from normstream.adaptation import HostingError, ModelSpec, Preprocessing, labels, load_model


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
        "name=../x,architecture=resnet18",
    ],
)
def test_wrong_specifications_are_refused(text):
    with pytest.raises(ValueError, match="ModelSpec"):
        ModelSpec.parse(text)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(HostingError, match="cannot put 'tf_efficientnet_lite0' on device 'cuda:99'"):
        load_model(ModelSpec.parse("tf_efficientnet_lite0"), "cuda:99")
