"""The version of MRCG. Every artefact names the version that made it."""

__version__ = "0.1.0"
