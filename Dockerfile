# The image that `cargo xtask image` writes, for those who would rather have Docker build it:
#
#     docker build -t moat.dev/moat:0.1.0 .
#
# From scratch: static programs, and nothing else.

FROM rust:1.95-bookworm AS build
WORKDIR /moat
COPY . .
RUN target="$(uname -m)-unknown-linux-gnu" \
    && CARGO_PROFILE_RELEASE_STRIP=debuginfo RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --bins --target "$target" \
        -p moat-agent -p moat-controller -p moat-cni -p moat \
    && mkdir -p /image/usr/bin /image/etc /image/run /image/var \
    && install -d -m 1777 /image/tmp \
    && ln -s /run /image/var/run \
    && printf '%s\n' 'root:x:0:0:root:/:/sbin/nologin' 'nobody:x:65534:65534:nobody:/:/sbin/nologin' > /image/etc/passwd \
    && cd "target/$target/release" \
    && cp moat-agent moat-controller moat-cni moat /image/usr/bin/

FROM scratch
COPY --from=build /image /
ENV PATH=/usr/local/bin:/usr/bin:/bin:/
ENTRYPOINT ["/usr/bin/moat-agent"]
CMD ["run"]
