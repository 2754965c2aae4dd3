# The daemon: Kafka, drift detectors and training.
# docker build -f docker/daemon.Dockerfile -t driftd/daemon:0.1.0 .
#
# PyPI's torch for Linux brings CUDA, which the daemon does not use. To leave these gigabytes out, name PyTorch's
# index of CPU wheels: --build-arg TORCH_INDEX=https://...
FROM python:3.12-slim AS build
ARG TORCH_INDEX=""
COPY . /source
RUN python -m venv /opt/driftd \
 && if [ -n "$TORCH_INDEX" ]; then \
      /opt/driftd/bin/pip install --no-cache-dir --no-compile --index-url "$TORCH_INDEX" "torch>=2.10,<2.14"; \
    fi \
 && /opt/driftd/bin/pip install --no-cache-dir --no-compile "/source[daemon,avro,signing,s3]" \
 && /opt/driftd/bin/pip uninstall --yes pip

FROM python:3.12-slim
COPY --from=build /opt/driftd /opt/driftd
ENV PATH=/opt/driftd/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    DRIFTD_CONFIG=/etc/driftd/driftd.yaml HF_HOME=/var/lib/driftd/cache
RUN useradd --uid 10001 --no-create-home --home-dir /tmp driftd \
 && mkdir -p /var/lib/driftd && chown 10001:10001 /var/lib/driftd
USER 10001:10001
WORKDIR /tmp
EXPOSE 8081
ENTRYPOINT ["driftd"]
CMD ["run"]
