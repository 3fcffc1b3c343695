"""A package, so that ``from tests.fakes import ...`` works in spawned children too."""
