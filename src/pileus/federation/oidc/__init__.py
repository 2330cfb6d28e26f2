"""OpenID providers: OpenID Connect Core 1.0 over OAuth 2.0, by its code flow with PKCE."""
