# The program and the clients of the databases that it dumps.
#
#   docker build -t backup .
#   docker run --rm -v ./strategies:/etc/backup/strategies:ro -v backup-state:/var/lib/holdfast \
#       -v /srv/backups:/backups backup --strategy daily
#
# PG_VERSIONS are the majors of the PostgreSQL clients, from the packages of the PostgreSQL project
# (PGDG=1). Without them (PGDG=0) there is what Debian has: build with PG_VERSIONS=15.

FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin backup

# The package carries the key that the packages of the PostgreSQL project are signed with.
FROM debian:bookworm-slim AS pgdg
ARG PGDG=1
# hadolint ignore=DL3008
RUN mkdir -p /pgdg/keyrings /pgdg/sources.list.d \
    && if [ "$PGDG" = 1 ]; then \
        apt-get update \
        && apt-get install -y --no-install-recommends postgresql-common \
        && cp /usr/share/postgresql-common/pgdg/apt.postgresql.org.gpg /pgdg/keyrings/pgdg.gpg \
        && echo "deb [signed-by=/etc/apt/keyrings/pgdg.gpg] https://apt.postgresql.org/pub/repos/apt bookworm-pgdg main" \
            > /pgdg/sources.list.d/pgdg.list; \
    fi

FROM debian:bookworm-slim
ARG PG_VERSIONS="15 16 17 18"
LABEL org.opencontainers.image.title="Holdfast" \
    org.opencontainers.image.description="Scheduled backups of databases and files, to local and S3 storage" \
    org.opencontainers.image.licenses="MIT OR Apache-2.0"

# Certificates come first: the packages of the PostgreSQL project are fetched over TLS. Versions are
# those of the day, with the security fixes that this stable release gets.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=pgdg /pgdg/ /etc/apt/
# hadolint ignore=DL3008,SC2086
RUN apt-get update \
    && clients="$(printf ' postgresql-client-%s' $PG_VERSIONS)" \
    && apt-get install -y --no-install-recommends age mariadb-client tini tzdata zstd $clients \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/backup /usr/local/bin/backup

# An image in which a tool is missing must not be built: nobody would notice before the first backup
# that needs it.
# hadolint ignore=SC2086
RUN set -eu; \
    for major in $PG_VERSIONS; do \
        for tool in pg_dump pg_dumpall pg_restore psql; do \
            version="$("/usr/lib/postgresql/$major/bin/$tool" --version)"; \
            echo "$version"; \
            case "$version" in *" $major."*) ;; *) exit 1 ;; esac; \
        done; \
    done; \
    mariadb-dump --version; mariadb --version; age --version; zstd --version; \
    tini --version; backup --version

# The catalog and the locks. Any user may have its state here (`docker run --user 10001`), and so
# may a root that has lost its power over the folders of others (`--cap-drop ALL`): a new volume
# takes owner and mode from this folder. Whoever is not root looks for its state here too.
ENV XDG_STATE_HOME=/var/lib
RUN install -d -m 1777 /var/lib/holdfast
VOLUME /var/lib/holdfast
# Of the scheduler: unhealthy when the newest backup of some strategy is older than its schedule
# allows.
HEALTHCHECK --interval=1m --timeout=30s --start-period=1m CMD ["backup", "status"]
# tini reaps what a `command` source or a hook leaves behind, where nothing else does (Kubernetes).
ENTRYPOINT ["tini", "-s", "--", "backup"]
