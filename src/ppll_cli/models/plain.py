"""Builds a model as one PyTorch module, for use without a pipeline."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from ppll_cli.models.unit import Unit, build_unit, check_names


class PlainModel(nn.Module):
    """All units of a model in one network; its `state_dict()` has the keys of `model.safetensors`.

    The initial weights are those of a run with the same seed.

    Raises:
        ConfigError: The units cannot have these names (see `check_names`).
    """

    def __init__(self, units: Sequence[Unit], seed: int = 0) -> None:
        super().__init__()
        self._units = tuple(units)
        check_names([unit.name for unit in self._units])
        for unit in self._units:
            *folders, last = unit.name.split(".")
            _container(self, folders).add_module(last, build_unit(unit, seed))

    def forward(
        self,
        inputs: Tensor | Mapping[str, Tensor],
        before: Callable[[str], object] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Return the prediction: the output of the last unit, or a tuple if it writes several.

        Args:
            inputs: The tensors that the model reads, by name, or the only tensor that its first
                unit reads, for example images [B, C, H, W].
            before: Called with the name of each unit before the unit's forward pass.

        Raises:
            TypeError: The model reads a tensor that is not in `inputs`, or a unit does not return
                the tensors of its `writes`.
        """
        given = {self._units[0].reads[0]: inputs} if isinstance(inputs, Tensor) else inputs
        values = dict(given)
        for unit in self._units:
            if missing := [name for name in unit.reads if name not in values]:
                problem = f"unit {unit.name!r} reads {', '.join(unit.reads)}, but there is no"
                raise TypeError(f"{problem} {missing[0]!r}: call the model with tensors by name")
            if before is not None:
                before(unit.name)
            network = self.get_submodule(unit.name)
            values.update(unit.written(network(*unit.inputs(values))))
        prediction = tuple(values[name] for name in unit.writes)
        return prediction if len(prediction) > 1 else prediction[0]


def _container(root: nn.Module, folders: Sequence[str]) -> nn.Module:
    for folder in folders:
        if not hasattr(root, folder):
            root.add_module(folder, nn.Module())
        root = root.get_submodule(folder)
    return root
