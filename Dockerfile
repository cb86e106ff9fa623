# Calibrant's service, for CPUs by default: docker build -t calibrant . Building, running and what was tried:
# docs/container.md.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Among builds of torch's pinned version, pip prefers one with a local label (+cpu, +cu130) to PyPI's.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY service service
COPY model_training model_training
COPY library/calibrant library/calibrant
RUN python -m venv /opt/calibrant \
 && /opt/calibrant/bin/pip install --constraint constraints.txt --extra-index-url "${TORCH_INDEX}" .

FROM ${PYTHON_IMAGE}
# A fresh volume gets the owner of the folder at its mount point.
RUN groupadd --gid 10001 calibrant \
 && useradd --uid 10001 --gid calibrant --home-dir /state --no-create-home --shell /usr/sbin/nologin calibrant \
 && install -d -o calibrant -g calibrant -m 0700 /state /keys
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
# On other addresses than loopback the service requires keys (CALIBRANT_KEYS_FILE) or an authenticating proxy
# (CALIBRANT_BEHIND_PROXY).
ENTRYPOINT ["calibrant"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
