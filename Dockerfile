# The service in a container: docker build -t fairy .
# torch comes as the package index has it, with CUDA's packages; for an image without them, name PyTorch's own index of
# wheels for the CPU: --build-arg TORCH_INDEX=…
FROM python:3.12-slim AS build
ARG TORCH_INDEX=
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN python -m venv /opt/fairy \
    && /opt/fairy/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
    && /opt/fairy/bin/pip install --no-cache-dir ".[serve,shots]"

FROM python:3.12-slim
# Triton compiles a launcher with the system's compiler when a kernel first runs on a GPU.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home fairy && install -d -o fairy -g fairy -m 700 /data
COPY --from=build /opt/fairy /opt/fairy
ENV PATH=/opt/fairy/bin:$PATH PYTHONDONTWRITEBYTECODE=1 \
    XDG_CACHE_HOME=/data/cache TRITON_CACHE_DIR=/data/cache/triton HF_HOME=/data/cache/huggingface
USER fairy
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["fairy"]
CMD ["serve", "--host", "0.0.0.0", "--keys", "/run/secrets/fairy_keys", "--data", "/data/serve"]
