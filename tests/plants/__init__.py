"""The bugs that the tests must find: a module for each part of the code, and all of them in `PLANTS`."""

import importlib
import pkgutil

MODULES = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
PLANTS = [plant for module in MODULES for plant in module.PLANTS]
