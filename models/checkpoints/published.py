"""The published networks by name: the sizes of the official MinVIS and Mask2Former configurations."""

from __future__ import annotations

from dataclasses import replace

from visrt.models.genvis import GenVisNetworkSettings
from visrt.models.mask2former import NetworkSettings
from visrt.models.resnet import ResNetSettings
from visrt.models.swin import SwinSettings

__all__ = ["DATASET_CLASSES", "PUBLISHED", "ctvis", "genvis", "published"]

PUBLISHED: dict[str, NetworkSettings] = {
    "r50": NetworkSettings(classes=40, backbone=ResNetSettings()),
    "r101": NetworkSettings(classes=40, backbone=ResNetSettings(blocks=(3, 4, 23, 3))),
    "swin_t": NetworkSettings(classes=40, backbone=SwinSettings()),
    "swin_s": NetworkSettings(classes=40, backbone=SwinSettings(depths=(2, 2, 18, 2))),
    "swin_b": NetworkSettings(
        classes=40,
        backbone=SwinSettings(embed_dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), window=12),
    ),
    "swin_l": NetworkSettings(
        classes=40,
        queries=200,
        backbone=SwinSettings(embed_dim=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window=12),
    ),
}
"""With the 40 classes of YouTube-VIS 2019; `published` gives another number of classes."""


def published(name: str, classes: int) -> NetworkSettings:
    """The published architecture `name` for `classes` classes."""
    return replace(PUBLISHED[name], classes=classes)


def ctvis(settings: NetworkSettings) -> NetworkSettings:
    """CTVIS's network: `settings` with its instance-embedding head, as wide as the queries."""
    return replace(settings, reid_dim=settings.hidden_dim, reid_hidden_dim=settings.hidden_dim)


def genvis(settings: NetworkSettings) -> GenVisNetworkSettings:
    """GenVIS's network on the frame part `settings`: 100 slots however many frame queries there are."""
    return GenVisNetworkSettings(frame=settings)


def _names(words: str) -> tuple[str, ...]:
    return tuple(words.split())


DATASET_CLASSES: dict[str, tuple[str, ...]] = {
    "coco": tuple(
        name.replace("_", " ")
        for name in _names(
            "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign "
            "parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag "
            "tie suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard "
            "tennis_racket bottle wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot "
            "hot_dog pizza donut cake chair couch potted_plant bed dining_table toilet tv laptop mouse remote keyboard "
            "cell_phone microwave oven toaster sink refrigerator book clock vase scissors teddy_bear hair_drier "
            "toothbrush"
        )
    ),
    "ytvis2019": _names(
        "person giant_panda lizard parrot skateboard sedan ape dog snake monkey hand rabbit duck cat cow fish train "
        "horse turtle bear motorbike giraffe leopard fox deer owl surfboard airplane truck zebra tiger elephant "
        "snowboard boat shark mouse frog eagle earless_seal tennis_racket"
    ),
    "ytvis2021": _names(
        "airplane bear bird boat car cat cow deer dog duck earless_seal elephant fish flying_disc fox frog giant_panda "
        "giraffe horse leopard lizard monkey motorbike mouse parrot person rabbit shark skateboard snake snowboard "
        "squirrel surfboard tennis_racket tiger train truck turtle whale zebra"
    ),
    "ovis": _names(
        "Person Bird Cat Dog Horse Sheep Cow Elephant Bear Zebra Giraffe Poultry Giant_panda Lizard Parrot Monkey "
        "Rabbit Tiger Fish Turtle Bicycle Motorcycle Airplane Boat Vehical"
    ),
    "imagenet_vid": _names(
        "airplane antelope bear bicycle bird bus car cattle dog domestic_cat elephant fox giant_panda hamster horse "
        "lion lizard monkey motorcycle rabbit red_panda sheep snake squirrel tiger train turtle watercraft whale zebra"
    ),
}
DATASET_CLASSES["ytvis2022"] = DATASET_CLASSES["ytvis2021"]
"""Class names in the order of the class logits, spelt as in the sets' own files. Published checkpoints hold numbers of
classes only, no names."""
