# The inference server and the operators' commands: without torch; with all that a server may use.
# docker build -f docker/server.Dockerfile -t driftd/server:0.1.0 .
FROM python:3.12-slim AS build
COPY . /source
RUN python -m venv /opt/driftd \
 && /opt/driftd/bin/pip install --no-cache-dir --no-compile "/source[grpc,log,otel,signing,s3]" \
 && /opt/driftd/bin/pip uninstall --yes pip

FROM python:3.12-slim
COPY --from=build /opt/driftd /opt/driftd
ENV PATH=/opt/driftd/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    DRIFTD_CONFIG=/etc/driftd/driftd.yaml
RUN useradd --uid 10001 --no-create-home --home-dir /tmp driftd \
 && mkdir -p /var/lib/driftd && chown 10001:10001 /var/lib/driftd
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080 8001
ENTRYPOINT ["driftd"]
CMD ["serve"]
