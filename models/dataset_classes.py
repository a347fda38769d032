"""The classes of public data sets; a module without torch, for the readers of sets."""

from __future__ import annotations

__all__ = ["DATASET_CLASSES"]


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
