# PostgreSQL's official image with pgstream_hooks in it: docker build --build-arg PG=18 -t postgres-hooks .
ARG PG=18

FROM postgres:${PG}-bookworm AS build
ARG PG
RUN apt-get update && apt-get install -y --no-install-recommends \
      ca-certificates curl gcc libc6-dev libclang-dev make postgresql-server-dev-${PG} \
 && curl -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain 1.95
ENV PATH=/root/.cargo/bin:$PATH
WORKDIR /build
COPY . .
RUN make install PG_CONFIG=/usr/lib/postgresql/${PG}/bin/pg_config DESTDIR=/installed

FROM postgres:${PG}-bookworm
COPY --from=build /installed/ /
# Endpoints are verified by the certificates that the system trusts.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
CMD ["postgres", "-c", "shared_preload_libraries=pgstream_hooks", "-c", "wal_level=logical"]
