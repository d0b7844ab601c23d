"""Prepare your own images for training: check them, split them, write a recipe.

One subcommand of ``python -m src prepare`` per kind of labels: ``from-folder`` (`folder`),
``from-coco`` (`coco`), ``from-masks`` (`masks`). They share the check of the images (`survey`), the
split (`split`) and the recipe (`recipe`). Sources are never changed; all output is in one folder.
"""
