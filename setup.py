"""Finds the packages, and maps the data folders of the top level into ours (``pkg://cab.conf`` works everywhere)."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["attention_zoo*", "cab*", "tasks*"]),
        *("cab.conf", "cab.published", "cab.reference"),
    ],
    package_dir={"cab.conf": "conf", "cab.published": "results/published", "cab.reference": "results/reference"},
    package_data={
        "cab.conf": ["**/*.yaml"],
        "cab.published": ["**/*.csv", "**/*.md"],
        "cab.reference": ["*.csv"],
        "cab.report": ["templates/*"],
        "tasks": ["**/*.md"],
        "attention_zoo": ["py.typed"],
        "cab": ["py.typed"],
    },
)
