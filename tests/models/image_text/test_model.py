"""Image and text towers: features, meta device, weights."""

from functools import partial

import pytest
import torch

from src.distributed import materialise
from src.errors import UserError
from src.models import ImageTextModel, InternImage, OpenCLIPTextTower, TextTower
from src.models.image_text import load_text_weights

BACKBONE = {"channels": 8, "depths": (1, 1, 1, 1), "groups": (1, 2, 4, 8)}
TEXT = {"width": 16, "heads": 2, "layers": 2, "output_dim": 12, "vocab_size": 40}
TEXT |= {"context_length": 6}


def make(**settings) -> ImageTextModel:
    return ImageTextModel(partial(InternImage, **BACKBONE), partial(TextTower, **TEXT), **settings)


@pytest.fixture(scope="module")
def model() -> ImageTextModel:
    torch.manual_seed(0)
    return make().eval()


def test_features_have_length_one_and_a_common_width(model: ImageTextModel) -> None:
    image, text = torch.randn(3, 3, 64, 64), torch.randint(0, 39, (5, 6))
    found = model(image, text)
    assert found.image.shape == (3, 12)
    assert found.text.shape == (5, 12)
    assert torch.allclose(found.image.norm(dim=1), torch.ones(3))
    assert torch.allclose(found.text.norm(dim=1), torch.ones(5))
    assert found.scale.item() == pytest.approx(1 / 0.07)
    assert found.bias is None


def test_towers_work_alone(model: ImageTextModel) -> None:
    image = torch.randn(3, 3, 64, 64)
    alone = model(image=image)
    assert alone.text is None
    assert torch.equal(alone.image, model.encode_image(image))
    assert model(text=torch.zeros(1, 6, dtype=torch.long)).image is None


def test_the_scale_is_limited() -> None:
    network = make(logit_scale=100.0, logit_bias=-10.0)
    network.logit_scale.data += 1
    found = network(text=torch.zeros(1, 6, dtype=torch.long))
    assert found.scale.item() == pytest.approx(100.0)
    assert found.bias.item() == -10.0
    with pytest.raises(UserError, match="at most 100"):
        make(logit_scale=101.0)


def test_the_clip_projector_pools_the_image_tower() -> None:
    backbone = partial(InternImage, **BACKBONE, use_clip_projector=True)
    network = ImageTextModel(backbone, partial(TextTower, **TEXT))
    assert network.image_projection.in_features == 768
    assert network(image=torch.randn(2, 3, 64, 64)).image.shape == (2, 12)


def test_the_meta_device_gives_the_same_initial_values() -> None:
    torch.manual_seed(3)
    whole = make(logit_bias=-10.0)
    after = torch.rand(1)
    with torch.device("meta"):
        network = make(logit_bias=-10.0)
    torch.manual_seed(3)
    materialise(network, torch.device("cpu"))
    assert torch.equal(torch.rand(1), after)
    state = network.state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(state[name], value), name
    tokens = torch.tensor([[1, 5, 39, 0, 0, 0]])
    assert torch.equal(network.eval()(text=tokens).text, whole.eval()(text=tokens).text)


def test_initial_values_are_those_of_open_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    ours = TextTower(**TEXT | {"width": 128, "vocab_size": 500}).encoder
    settings = TEXT | {"width": 128, "vocab_size": 500}
    theirs = open_clip.transformer.TextTransformer(**settings).state_dict()
    for name, value in ours.state_dict().items():
        assert value.std().item() == pytest.approx(theirs[name].std().item(), rel=0.1), name
        assert value.mean().item() == pytest.approx(theirs[name].mean().item(), abs=0.01), name


def test_checkpointing_does_not_change_gradients() -> None:
    tokens = torch.randint(0, 39, (4, 6))
    found = []
    for enable in (False, True):
        torch.manual_seed(0)
        tower = TextTower(**TEXT, grad_checkpointing=enable)
        assert tower.encoder.transformer.grad_checkpointing is enable
        tower(tokens).pow(2).sum().backward()
        found.append([p.grad for p in tower.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other)


def test_a_frozen_tower_is_not_trained() -> None:
    tower = TextTower(**TEXT, frozen=True).train()
    assert not tower.training
    assert not tower(torch.zeros(1, 6, dtype=torch.long)).requires_grad


def test_too_long_texts_are_refused(model: ImageTextModel) -> None:
    with pytest.raises(UserError, match="7 tokens, the text tower reads at most 6"):
        model(text=torch.zeros(1, 7, dtype=torch.long))


@pytest.mark.parametrize(
    ("model", "expected"), [("ViT-X", "no model 'ViT-X'"), ("roberta-ViT-B-32", "transformers")]
)
def test_unknown_models_of_open_clip_are_refused(model: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        OpenCLIPTextTower(model)


def test_text_towers_of_open_clip_are_the_same_networks() -> None:
    open_clip = pytest.importorskip("open_clip")
    with torch.device("meta"):
        for name in ("ViT-L-14", "ViT-B-16-SigLIP"):
            tower = OpenCLIPTextTower(name)
            config = open_clip.get_model_config(name)
            whole = open_clip.model.CustomTextCLIP(
                config["embed_dim"],
                {"layers": 1, "width": 64, "image_size": 16},
                config["text_cfg"],
            )
            shapes = {k: v.shape for k, v in tower.encoder.state_dict().items()}
            assert shapes == {k: v.shape for k, v in whole.text.state_dict().items()}
        assert OpenCLIPTextTower("ViT-L-14").output_dim == 768


@pytest.mark.parametrize("prefix", ["", "text."])
def test_weights_of_open_clip_are_loaded(prefix: str, tmp_path) -> None:
    source, target = TextTower(**TEXT), TextTower(**TEXT)
    state = {prefix + k: v for k, v in source.encoder.state_dict().items()}
    torch.save(
        state | {"logit_scale": torch.zeros(()), "visual.proj": torch.zeros(2, 2)},
        tmp_path / "clip.pt",
    )
    load_text_weights(target, tmp_path / "clip.pt")
    tokens = torch.randint(0, 39, (3, 6))
    assert torch.equal(source(tokens), target(tokens))


def test_other_text_weights_are_refused(tmp_path) -> None:
    path = tmp_path / "clip.pt"
    torch.save(TextTower(**TEXT | {"layers": 3}).encoder.state_dict(), path)
    with pytest.raises(UserError, match="further layers"):
        load_text_weights(TextTower(**TEXT), path)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="no text tower of open_clip"):
        load_text_weights(TextTower(**TEXT), path)
