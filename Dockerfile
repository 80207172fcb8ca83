# The program's image (target `runtime`) and one that runs its tests against given services (target `tests`).
# Nothing here needs BuildKit: the classic builder builds every stage that stands before the target, hence the order.

ARG RUST_IMAGE=rust:1-bookworm
ARG DEBIAN_IMAGE=debian:bookworm-slim
ARG POSTGRES_IMAGE=postgres:17-bookworm

# ---- dependencies: all crates, apart from our own code, again only when Cargo.toml or Cargo.lock change --------------
FROM ${RUST_IMAGE} AS dependencies
# `release` is what ships; `dev` compiles in a fraction of the time and runs at a fraction of the speed.
ARG PROFILE=release
# Debug information would make the layers several times as large, and nobody attaches a debugger here.
ENV CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=0
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
# Empty sources in place of ours; the manifest names the benches, which are built nowhere here.
RUN mkdir -p src benches tests/it \
 && touch src/lib.rs \
 && for bench in $(sed -n '/^\[\[bench\]\]/,/^$/s/^name = "\(.*\)"/\1/p' Cargo.toml); do touch "benches/$bench.rs"; done \
 && echo 'fn main() {}' | tee src/main.rs tests/it/main.rs >/dev/null \
 && cargo build --locked --profile "$PROFILE" \
 && cargo clean --profile "$PROFILE" --package dataloader
RUN cargo test --locked --no-run --test it \
 && cargo clean --package dataloader

# ---- builder: the program --------------------------------------------------------------------------------------------
FROM dependencies AS builder
ARG PROFILE=release
COPY dataloader.toml ./
COPY migrations migrations
COPY src src
RUN cargo build --locked --profile "$PROFILE" --bin dataloader \
 && cp "target/$(if [ "$PROFILE" = dev ]; then echo debug; else echo "$PROFILE"; fi)/dataloader" /usr/local/bin/

# ---- psql: from the server's own image, so that it is of the same version; Debian's would be older and bring Perl ----
FROM ${POSTGRES_IMAGE} AS psql
RUN mkdir -p /psql/usr/local/bin \
 && cp /usr/lib/postgresql/*/bin/psql /psql/usr/local/bin/ \
 && cp -P --parents /usr/lib/*-linux-gnu*/libpq.so.5* /psql/

# ---- runtime ---------------------------------------------------------------------------------------------------------
FROM ${DEBIAN_IMAGE} AS runtime
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates tmux libgssapi-krb5-2 libldap-2.5-0 libreadline8 libssl3 \
 && apt-get clean && rm -rf /var/lib/apt/lists/*
COPY --from=psql /psql/ /
# Volumes take over the owner of the directory they are mounted on; read-only mounts have theirs here as well.
RUN useradd --system --uid 10001 --home-dir /app --shell /usr/sbin/nologin dataloader \
 && install -d -o dataloader -g dataloader /app /app/inbox /app/raw_data /stage \
 && psql --version
COPY docker/screen /usr/local/bin/dataloader-screen
COPY docker/tmux.conf docker/psqlrc /etc/dataloader/
COPY --from=builder /usr/local/bin/dataloader /usr/local/bin/
WORKDIR /app
COPY raw_data raw_data
ENV LANG=C.UTF-8 PSQL_HISTORY=/tmp/.psql_history
USER dataloader
# Of the stream, which `run` is. The menus' containers, which only wait to be entered, switch it off.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["dataloader", "health"]
# Exec form, no shell in between: the program gets the SIGTERM on which it drains.
ENTRYPOINT ["dataloader"]
CMD ["run"]

# ---- tests: compiled where they stand, and run there against the runtime's own program -------------------------------
FROM dependencies AS test-builder
COPY dataloader.toml ./
COPY migrations migrations
COPY src src
COPY tests tests
RUN cargo test --locked --no-run --test it \
 && cp target/debug/deps/it-???????????????? /it

FROM runtime AS tests
USER root
RUN apt-get update \
 && apt-get install -y --no-install-recommends procps \
 && apt-get clean && rm -rf /var/lib/apt/lists/*
# The paths that the tests were compiled with: their files, and the program where cargo would have put it.
COPY dataloader.toml /src/
COPY raw_data /src/raw_data
COPY tests /src/tests
RUN mkdir -p /src/target/debug \
 && ln -s /usr/local/bin/dataloader /src/target/debug/dataloader
COPY docker/run-tests /usr/local/bin/
COPY --from=test-builder /it /usr/local/bin/dataloader-tests
WORKDIR /src
USER dataloader
HEALTHCHECK NONE
ENTRYPOINT ["run-tests"]
CMD []
