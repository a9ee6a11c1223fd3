# The sessiond image: one binary, no shell, no root. See compose.yaml for how to run it.
#
#   docker build -t sessiond .        (or: podman build -t sessiond . / buildah bud --format docker -t sessiond .)
#
# HEALTHCHECK is part of Docker's image format. Builders that default to the OCI format need `--format docker` for it.

# The builder's glibc must not be newer than the final image's: both are Debian 12.
FROM docker.io/library/rust:1-slim-bookworm AS build
WORKDIR /build
# Debug information would be most of the binary, so the image has none. Symbols stay, for backtraces.
ENV CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_STRIP=debuginfo
# For quick test builds: --build-arg CARGO_PROFILE_RELEASE_LTO=off, and so on.
ARG CARGO_PROFILE_RELEASE_LTO
ARG CARGO_PROFILE_RELEASE_OPT_LEVEL
ARG CARGO_PROFILE_RELEASE_CODEGEN_UNITS

# Builds the dependencies in a layer that only Cargo.toml and Cargo.lock invalidate: they are compiled for an empty
# crate. Declared tests, benches and examples are cut from the manifest, because their files are not in the build
# context.
COPY Cargo.toml Cargo.lock ./
RUN awk '/^\[/ { cut = /^\[\[(test|bench|example)\]\]/ } !cut' Cargo.toml > Cargo.toml.cut \
    && mv Cargo.toml.cut Cargo.toml \
    && mkdir src && echo '//! Empty.' > src/lib.rs && printf '//! Empty.\nfn main() {}\n' | tee src/main.rs > build.rs \
    && cargo build --locked --release --bin sessiond \
    # Removes what was built from the empty crate. Otherwise Cargo considers it newer than the files that follow.
    && cargo clean --locked --release --package sessiond \
    && rm -r src build.rs

COPY build.rs ./
COPY proto proto
COPY src src
RUN cargo build --locked --release --bin sessiond && mkdir /build/empty

# Why not a static musl binary on scratch? A musl build needs a Rust target that the builder image does not ship, and
# scratch has neither CA certificates nor the resolver configuration that a storage across the network needs. This base
# adds those, glibc and libgcc. It has no shell and no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /build/target/release/sessiond /sessiond
# For SESSIOND_STORAGE=file:/var/lib/sessiond/registry. A new volume takes its owner from here.
COPY --from=build --chown=65532:65532 /build/empty /var/lib/sessiond

# A container has its own loopback interface, so with the default of 127.0.0.1 nobody could connect.
ENV SESSIOND_LISTEN=0.0.0.0:50051 SESSIOND_ADMIN_LISTEN=0.0.0.0:9090
EXPOSE 50051 9090
# A number, so that Kubernetes' runAsNonRoot can see that it is not root.
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/sessiond", "health"]
ENTRYPOINT ["/sessiond"]
CMD ["serve"]

ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sessiond" \
      org.opencontainers.image.description="The session registry of a fleet of gateways, over gRPC" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="gcr.io/distroless/cc-debian12:nonroot"
