#!/usr/bin/env python3
"""What the machine is, as one line of JSON: GPU, driver, processor, tools, and the Python libraries that serve as rivals."""
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess

FIELDS = ["name", "driver_version", "memory.total", "clocks.max.sm", "clocks.max.memory", "power.limit", "mig.mode.current",
          "compute_cap", "temperature.gpu", "utilization.gpu"]


def said(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=15, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        return platform.processor()


rows = [line.split(", ") for line in said("nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader").split("\n")]
print(json.dumps({
    "gpus": [dict(zip(FIELDS, row)) for row in rows if len(row) == len(FIELDS)],
    "processor": processor(),
    "cores": os.cpu_count(),
    "system": platform.platform(),
    "nvcc": next((line for line in said("nvcc", "--version").split("\n") if "release" in line), None),
    "tools": {name: shutil.which(name) is not None for name in ["cmake", "ninja", "compute-sanitizer", "ncu", "node"]},
    "python": platform.python_version(),
    "packages": {name: version(name) for name in ["torch", "triton", "transformers", "nvidia-cudnn-cu13", "nvidia-cublas"]},
}))
