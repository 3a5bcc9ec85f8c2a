"""Scenes: an embedded world of colored shapes in which every caption can be checked.

``sampler`` draws scenes, ``render`` images, ``captions`` texts, ``prompts`` GenEval prompts;
``splits`` says what is for what; ``coco`` writes files; ``default`` is what a run uses when no
data are named. Nothing here reads the disk, and none but ``coco`` needs pycocotools, which it
loads when it writes.
"""
