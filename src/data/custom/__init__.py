"""Your own images, made ready for training: check them, split them, write a recipe.

One command per kind of labels, all of ``python -m src prepare``: ``from-folder`` (`folder`),
``from-coco`` (`coco`), ``from-masks`` (`masks`). They share the checking of images (`survey`),
the split (`split`) and the recipe (`recipe`). Sources are never changed; everything that is made
lies in one folder.
"""
