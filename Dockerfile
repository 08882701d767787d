# The official image with the extension in it:
#
#   docker build --build-arg PG=18 -t pgstream_hooks .
#   docker run -e POSTGRES_PASSWORD=secret pgstream_hooks
ARG PG=18

FROM postgres:${PG}-bookworm AS build
ARG PG
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev libclang-dev make postgresql-server-dev-${PG}
COPY --from=rust:1.96-slim-bookworm /usr/local/cargo /usr/local/cargo
COPY --from=rust:1.96-slim-bookworm /usr/local/rustup /usr/local/rustup
ENV CARGO_HOME=/usr/local/cargo RUSTUP_HOME=/usr/local/rustup PATH=/usr/local/cargo/bin:$PATH
COPY . /source
RUN make -C /source install PG_CONFIG=/usr/lib/postgresql/${PG}/bin/pg_config DESTDIR=/installed

FROM postgres:${PG}-bookworm
# The authorities by which certificates of endpoints are verified.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /installed/ /
ARG PG
# initdb makes postgresql.conf from this file. ALTER SYSTEM and arguments of the server override both settings; as arguments of
# CMD they would override ALTER SYSTEM, and any argument of `docker run` would drop them.
RUN printf '%s\n' '' "shared_preload_libraries = 'pgstream_hooks'" >>/usr/share/postgresql/postgresql.conf.sample \
 && { [ "$PG" -ge 19 ] || printf '%s\n' 'wal_level = logical' >>/usr/share/postgresql/postgresql.conf.sample; }
