# Training and inference in a container, on CPUs and NVIDIA GPUs.
#   docker build -t internimage .        # a GPU runs the Triton kernels of the operator
#   docker build -t internimage --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 .   # ... the CUDA kernels
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/data" -w /data internimage fit --config /app/configs/toy/classification.yaml
# Leave out --gpus without a GPU. The CUDA base image only provides nvcc: torch brings its own CUDA libraries.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# ARCHS: compute capabilities of the GPUs, used if the base image has nvcc.
ARG ARCHS="8.0;8.6;8.9;9.0;10.0;12.0"

RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git libgomp1 \
    && if ! command -v python3; then apt-get install -y --no-install-recommends python3 python3-dev python3-venv; fi \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

WORKDIR /app
# PyTorch first, in a layer of its own, which changes of the code leave in the cache.
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt setuptools wheel ninja torch torchvision
COPY . .
RUN if command -v nvcc; then export SRC_BUILD_CUDA=1 INTERNIMAGE_CUDA_ARCHS="$ARCHS"; fi \
    && pip install --no-cache-dir -c constraints.txt --no-build-isolation -e ".[export]" \
    && python -m src env

# The exec form, so that `docker stop` reaches Python; use --stop-timeout 60 for long steps.
ENTRYPOINT ["python", "-m", "src"]
CMD ["env"]
