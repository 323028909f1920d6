# clipmole serve: the page and the API, on the CPU, as a user without rights.
#
#   docker build -t clipmole .     (--build-arg PIP_EXTRA_INDEX_URL=... where your index has no CPU build of torch;
#                                   --build-arg EXTRAS=serve,openvino for --runtime openvino)
#   docker run --rm -p 127.0.0.1:8000:8000 --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#     --memory 8g -e CLIPMOLE_TOKEN=... clipmole --allowed-host localhost
FROM debian:bookworm-slim AS base
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates python3 && rm -rf /var/lib/apt/lists/*

FROM base AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints-cpu.txt ./
COPY src ./src
COPY weights ./weights
ARG PIP_EXTRA_INDEX_URL=""
ARG EXTRAS=serve
RUN python3 -m venv /opt/clipmole \
    && /opt/clipmole/bin/pip install --no-cache-dir -c constraints-cpu.txt ".[$EXTRAS]" ./weights/clip-vit-b-16

FROM base
COPY --from=build /opt/clipmole /opt/clipmole
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin clipmole
ENV PATH=/opt/clipmole/bin:$PATH \
    HF_HUB_OFFLINE=1 \
    CLIPMOLE_CACHE=/tmp/clipmole \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/readyz', headers={'Host': 'localhost'}); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["clipmole", "serve", "--host", "0.0.0.0", "--port", "8000"]
