# The image of a worker; docker-compose.yml builds and runs it. `docker run --rm orders doctor` runs other commands.
# The Python is the one the tests run on.
FROM python:3.11-slim-bookworm AS build
WORKDIR /app
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Exactly what is locked, checked against its hashes, and nothing that would have to be compiled.
COPY requirements.lock ./
RUN pip install --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml requirements.in ./
COPY engine engine
COPY streams streams
COPY domain domain
COPY tables tables
COPY agents agents
COPY cli cli
# Editable, so that the files beside the code are where the code expects them. Nobody installs anything later.
RUN pip install --no-deps --no-build-isolation -e . \
    && python -m compileall -q /app \
    && pip uninstall -q -y setuptools pip

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin orders \
    && install -d -o orders -g orders /data
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
# Inside a container everybody who reaches the port comes from outside: ORDERS_API_TOKEN has to be given.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORDERS_DATA_DIR=/data \
    ORDERS_WEB_HOST=0.0.0.0 \
    ORDERS_WEB_PORT=6066
WORKDIR /data
VOLUME /data
EXPOSE 6066
USER 10001:10001
# On SIGTERM a worker commits, leaves the group and ends, within 9 s.
STOPSIGNAL SIGTERM
# Fails while partitions are being restored as well. Python is there anyway, and starts in a twentieth of a second.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"ORDERS_WEB_PORT\"]}/readyz', timeout=4)"]
ENTRYPOINT ["orders"]
CMD ["worker"]
