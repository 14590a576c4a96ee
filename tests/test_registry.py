"""The four dictionaries: what goes in, what comes out, and what they say to a mistake."""

from __future__ import annotations

import dataclasses
import pickle
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor, nn

from miras import algorithms, architectures, biases, from_module, retentions
from miras.biases import L2, AttentionalBias, Huber
from miras.registry import NameClash, Registry
from miras.spec import AXES

NAMES = [(axis, name) for axis, registry in AXES.items() for name in registry]


@pytest.fixture
def registry() -> Registry[AttentionalBias]:
    """An axis of its own, without plugins."""
    return Registry("test", AttentionalBias)


@dataclass(frozen=True)
class Absolute(AttentionalBias):
    weights: tuple[tuple[float, ...], ...] = ()
    inner: AttentionalBias | None = None

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs().sum(-1)


def test_the_whole_table_is_registered():
    """DESIGN §2; `feature_map` carries the feature maps of the first row."""
    wanted = "vector matrix low_rank mlp gated_mlp gated_residual_mlp slots from_module"
    assert set(architectures) >= set(wanted.split())
    wanted = "dot l2 l1 lp huber huber_norm yaad value_shift log_cosh kl cosine"
    assert set(biases) >= set(wanted.split())
    wanted = "none l2 lq kl f_divergence logistic tanh exponentiated elastic_net weight_norm orthogonal"
    assert set(retentions) >= set(wanted.split())
    wanted = "gd momentum nesterov qhm aggmo fir implicit omega multi_step muon dgd newton"
    assert set(algorithms) >= set(wanted.split())


def test_no_class_name_is_used_on_two_axes():
    """So that ``from miras.biases import *`` beside ``from miras.retentions import *`` hides nothing."""
    names = Counter(AXES[axis][name].__name__ for axis, name in NAMES)
    assert not [name for name, count in names.items() if count > 1]


@pytest.mark.parametrize(("axis", "name"), NAMES)
def test_components_are_values(axis: str, name: str):
    cls = AXES[axis][name]
    fields = {"factory": nn.Linear} if name == "from_module" else {}
    component = cls(**fields)
    assert component.name == name
    assert component == cls(**fields) and hash(component) == hash(cls(**fields))
    assert pickle.loads(pickle.dumps(component)) == component
    assert not [v for v in vars(component).values() if isinstance(v, (Tensor, nn.Module))]
    with pytest.raises(dataclasses.FrozenInstanceError):
        component.name = "another"


@pytest.mark.parametrize(("axis", "name"), NAMES)
def test_components_say_what_they_are(axis: str, name: str):
    sentence = (AXES[axis][name].__doc__ or "").split("\n\n")[0]
    assert sentence.strip().endswith("."), "the first paragraph is the sentence that tables show"
    assert not sentence.startswith(AXES[axis][name].__name__ + "("), "this docstring is the dataclass's, not ours"


def test_builds_from_a_name_a_mapping_and_itself():
    assert biases.build("huber") == Huber()
    assert biases.build({"name": "huber", "delta": 0.5}) == Huber(delta=0.5)
    assert biases.build(Huber(delta=2.0)) == Huber(delta=2.0)


def test_iterates_over_names():
    assert list(biases) == sorted(biases)
    assert len(biases) == len(list(biases))
    assert "l2" in biases and "l3" not in biases and biases["l2"] is L2


def test_to_dict_is_undone_by_build(registry: Registry[Any]):
    registry.register("absolute")(Absolute)
    component = Absolute(weights=((1.0, 2.0), (3.0,)), inner=Absolute())
    mapping = registry.to_dict(component)
    assert mapping["inner"] == {"name": "absolute", "weights": (), "inner": None}
    rebuilt = registry.build(mapping | {"weights": [[1.0, 2.0], [3.0]], "inner": registry.build(mapping["inner"])})
    assert rebuilt == component and hash(rebuilt) == hash(component)


def test_to_dict_holds_only_what_a_component_is_built_from():
    """A wrapped module keeps the modules it made in a field of its own."""
    component = from_module(nn.Linear)
    component.shapes(3, 4)
    assert architectures.to_dict(component) == {"name": "from_module", "factory": nn.Linear}
    assert architectures.build(architectures.to_dict(component)) == component


# mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "find", [lambda: biases["hubr"], lambda: biases.build("hubr"), lambda: biases.build({"name": "hubr"})]
)
def test_an_unknown_name_is_answered_with_the_known_ones(find: Any):
    with pytest.raises(
        KeyError, match=r"no bias named 'hubr'; did you mean 'huber'\? \(have: cosine, dot, feedback, huber"
    ):
        find()


def test_a_name_like_no_other_gets_no_guess():
    with pytest.raises(KeyError, match=r"no retention named 'xyz' \(have: "):
        retentions["xyz"]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ({"delta": 1.0}, r"a mapping for bias needs a 'name', a string; got \{'delta': 1.0\}"),
        ({"name": 5}, "needs a 'name', a string"),
        (
            {"name": "huber", "dleta": 1.0},
            r"bias 'huber' has no field 'dleta'; did you mean 'delta'\? \(have: delta, per\)",
        ),
        ({"name": "dot", "delta": 1.0}, r"bias 'dot' has no field 'delta' \(have: none\)"),
        ({"name": "huber", "delta": "one"}, "bias 'huber' cannot be built from {'delta': 'one'}"),
        ({"name": "huber", "delta": -1.0}, "huber needs a finite delta > 0, got -1.0"),
    ],
)
def test_a_wrong_mapping_is_named(what: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        biases.build(what)


def test_a_missing_field_is_named():
    with pytest.raises(ValueError, match=r"architecture 'from_module' cannot be built.*'factory'"):
        architectures.build("from_module")


@pytest.mark.parametrize(
    ("what", "got"),
    [(5, "int"), (None, "NoneType"), (Huber, "the class Huber: call it"), (retentions["l2"](), "L2Decay")],
)
def test_anything_else_is_refused(what: Any, got: str):
    with pytest.raises(ValueError, match=rf"bias must be a name, a mapping .* class AttentionalBias; got {got}"):
        biases.build(what)


# registration ------------------------------------------------------------------------------------


def test_two_classes_cannot_share_a_name(registry: Registry[Any]):
    registry.register("absolute")(Absolute)
    with pytest.raises(NameClash, match=r"test 'absolute' .* by .*:Absolute; .*:Huber must choose another name"):
        registry.register("absolute")(Huber)
    assert registry["absolute"] is Absolute


def test_a_class_defined_again_replaces_itself(registry: Registry[Any]):
    """Running a cell of a notebook twice, or reloading a module."""

    def define() -> type:
        @registry.register("mine")
        @dataclass(frozen=True)
        class Mine(Absolute):
            pass

        return Mine

    first, second = define(), define()
    assert first is not second and registry["mine"] is second


@pytest.mark.parametrize("bad", ["mutable", "foreign", "plain"])
def test_only_frozen_dataclasses_of_the_axis_are_components(registry: Registry[Any], bad: str):
    classes: dict[str, Any] = {
        "mutable": dataclass(type("Mutable", (), {})),
        "foreign": retentions["l2"],
        "plain": type("Plain", (), {}),
    }
    with pytest.raises(
        TypeError, match="must be a frozen dataclass deriving from AttentionalBias to be registered as test 'x'"
    ):
        registry.register("x")(classes[bad])
    assert "x" not in registry


def test_a_new_bias_needs_no_registration():
    """An object is always accepted where a name is."""
    assert biases.build(Absolute()) == Absolute()
