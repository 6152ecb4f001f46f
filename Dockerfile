# kdscale for NVIDIA GPUs; the files in launch/ that start containers name the image built from this:
#   docker build --tag REGISTRY/kdscale:latest . && docker push REGISTRY/kdscale:latest
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04

ENV PYTHONUNBUFFERED=1 \
    VIRTUAL_ENV=/opt/kdscale \
    PATH=/opt/kdscale/bin:$PATH

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/kdscale

COPY pyproject.toml README.md LICENSE /src/
COPY kdscale /src/kdscale
COPY launch /src/launch
# The wheels of torch bring their own CUDA libraries; the driver is the host's.
RUN pip install --no-cache-dir "/src[stores,models,sweep,export]" \
    && rm -rf /src

RUN useradd --create-home --uid 10001 kdscale
USER 10001
WORKDIR /home/kdscale
ENTRYPOINT ["kdscale"]
