# Calibrant's service. CPU by default; for a GPU: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126
# Run read-only: docker run --read-only --tmpfs /tmp -v calibrant-state:/state -p 8000:8000 calibrant (see deploy/).
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY service service
COPY model_training model_training
RUN python -m venv /opt/calibrant \
 && /opt/calibrant/bin/pip install --constraint constraints.txt --extra-index-url "${TORCH_INDEX}" . \
 && /opt/calibrant/bin/python -m compileall -q /opt/calibrant/lib

FROM ${PYTHON_IMAGE}
RUN useradd --system --uid 10001 --home-dir /state --no-create-home calibrant \
 && install -d -o calibrant -g calibrant -m 0700 /state
COPY --from=build /opt/calibrant /opt/calibrant
ENV PATH=/opt/calibrant/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CALIBRANT_STATE_DIR=/state
USER 10001:10001
VOLUME /state
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
# Beyond loopback the service wants keys (CALIBRANT_KEYS_FILE) or a proxy that authenticates (CALIBRANT_BEHIND_PROXY).
ENTRYPOINT ["calibrant"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
