"""A grid of cells that train in a second."""

BASE = {
    "network": {"branches": ["test_resnet", "test_byobnet"], "channels": 16, "separable": True},
    "data": {
        "dataset": {
            "class_path": "Streets",
            "init_args": {"num_train": 4, "num_val": 3, "num_test": 3, "height": 32, "width": 64},
        },
        "batch_size": 2,
        "crop_size": 32,
        "num_workers": 0,
    },
    "trainer": {"accelerator": "cpu", "max_epochs": 2, "num_sanity_val_steps": 0},
}
GRID = {
    "base": "base.yaml",
    "title": "Tiny",
    "seeds": [0, 1],
    "baseline": "Ensemble",
    "cells": {
        "ResNet": {"network.branches": ["test_resnet"], "network.strategy": "none"},
        "Ensemble": {"network.strategy": "none"},
    },
    "grid": {"network.strategy": ["cross", "cross_c1_c2"], "network.fusion": ["add"]},
    "tests": {"own size": {}, "half size": {"inference.scales": [0.5]}},
}
