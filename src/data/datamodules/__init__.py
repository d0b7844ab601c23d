"""LightningDataModules of the supported datasets, one file each.

A line here registers a dataset: its data module has a short name in YAML and in ``src.data``.
"""

from src.data.datamodules.ade20k import ADE20KDataModule as ADE20KDataModule
from src.data.datamodules.base import BaseDataModule as BaseDataModule
from src.data.datamodules.cityscapes import CityscapesDataModule as CityscapesDataModule
from src.data.datamodules.cityscapes import MapillaryDataModule as MapillaryDataModule
from src.data.datamodules.coco import COCODataModule as COCODataModule
from src.data.datamodules.coco_stuff import COCOStuffDataModule as COCOStuffDataModule
from src.data.datamodules.crowd_human import CrowdHumanDataModule as CrowdHumanDataModule
from src.data.datamodules.image_text import ImageTextDataModule as ImageTextDataModule
from src.data.datamodules.imagenet import ImageNetDataModule as ImageNetDataModule
from src.data.datamodules.imagenet22k import ImageNet22kDataModule as ImageNet22kDataModule
from src.data.datamodules.inaturalist import INaturalistDataModule as INaturalistDataModule
from src.data.datamodules.lvis import LVISDataModule as LVISDataModule
from src.data.datamodules.nyu_depth_v2 import NYUDepthV2DataModule as NYUDepthV2DataModule
from src.data.datamodules.open_images import OpenImagesDataModule as OpenImagesDataModule
from src.data.datamodules.pascal_context import PascalContextDataModule as PascalContextDataModule
from src.data.datamodules.voc import VOCDataModule as VOCDataModule
