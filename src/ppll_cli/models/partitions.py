"""Named partitions: how papers on local learning cut the ResNets for CIFAR-10 into modules."""

from collections.abc import Mapping, Sequence

_INFOPRO: dict[int, dict[str, tuple[tuple[int, int], ...]]] = {
    32: {
        "K2": ((2, 1),),
        "K4": ((1, 2), (2, 1), (3, 0)),
        "K8": ((1, 0), (1, 2), (1, 4), (2, 1), (2, 3), (3, 0), (3, 2)),
        "K16": ((0, 0), *((group, unit) for group in (1, 2, 3) for unit in range(5)))[:-1],
    },
    110: {
        "K2": ((2, 8),),
        "K4": ((1, 11), (2, 7), (3, 3)),
        "K8": ((1, 4), (1, 11), (2, 0), (2, 7), (2, 14), (3, 3), (3, 10)),
        "K16": (
            *((1, 1), (1, 4), (1, 7), (1, 10), (1, 13), (1, 16)),
            *((2, 1), (2, 4), (2, 7), (2, 11), (2, 15)),
            *((3, 1), (3, 5), (3, 9), (3, 13)),
        ),
        "K2_balanced": ((1, 14),),
        "K3_balanced": ((1, 9), (2, 2)),
        "K3_balanced_stl10": ((1, 8), (2, 1)),
        "K4_balanced": ((1, 6), (1, 14), (2, 8)),
    },
}
"""For each depth and partition: group and index of the last unit of each module except the last.

The partitions are taken from github.com/blackfeather-wang/InfoPro-Pytorch. (0, 0) is the stem. In a
balanced partition ("InfoPro*" in the paper), all modules need about the same memory.
"""

_AUGLOCAL_DEPTHS = range(1, 7)
"""Depths d of AugLocal's auxiliary networks for which there is a named partition."""


def named_partitions(depth: int) -> Mapping[str, Sequence[str]]:
    """Return the partitions of InfoPro, AugLocal and MAN for a ResNet of this depth, by name.

    A partition lists the first unit of each module except module 0. Only depths 32 and 110 have
    partitions.

    In `auglocal_d{d}`, as in AugLocal's code (github.com/ChenxiangMA/AugLocal), the last d + 1
    residual units and the head form one module. All earlier units are modules of one unit.

    In MAN's code (arXiv 2507.16279), the stem is a separate module. For ResNet-32, the residual
    units are cut into modules as in InfoPro's K8 or K16. For ResNet-110, K55 makes a module of each
    residual unit (our reading). K32 cuts the residual units into 32 modules: first modules of two
    units, then modules of one unit (our choice).
    """
    if depth not in _INFOPRO:
        return {}
    count = (depth - 2) // 6

    def behind(group: int, index: int) -> str:
        last = group == 0 or index == count - 1
        return f"layer{group + 1}.0" if last else f"layer{group}.{index + 1}"

    residual = [f"layer{group}.{index}" for group in (1, 2, 3) for index in range(count)]
    known = _INFOPRO[depth]
    infopro = {name: [behind(*end) for end in ends] for name, ends in known.items()}
    auglocal = {f"auglocal_d{d}": residual[:-d] for d in _AUGLOCAL_DEPTHS}
    if depth == 32:
        man = {f"man_{name}": infopro[name] for name in ("K8", "K16")}
    else:
        pairs = len(residual) - 32  # number of modules of two units
        man = {
            "man_K32": residual[: 2 * pairs : 2] + residual[2 * pairs :],
            "man_K55": residual,
        }
    man = {name: list(dict.fromkeys(["layer1.0", *cuts])) for name, cuts in man.items()}
    return infopro | auglocal | man
